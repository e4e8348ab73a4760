//! Devices whose operations are kernel launches.

mod driver;

pub use driver::*;
