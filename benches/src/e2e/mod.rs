//! Whole models through the engine: tokens a second beside the wall that reading the weights is.
//!
//! | part | what is in it |
//! |---|---|
//! | [`shape`] | the models that are measured, and the bytes of a step |
//! | [`run`] | requests through the engine, timed |
//! | [`observe`] | a driver that counts launches and, asked to, times them |
//! | [`show`] | the tables |

pub mod observe;
pub mod run;
pub mod shape;
pub mod show;
