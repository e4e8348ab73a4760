//! The GPU device, its very launches and kernels, under emulation, operation by operation against the CPU device, and the
//! promise that a row's bits don't depend on its batch.

mod gpu_device {
    pub mod agreement;
    pub mod batching;
    pub mod engine;
    pub mod errors;
    pub mod host_part;
    pub mod models;
    pub mod outbox;
    pub mod products;
    pub mod quantized_products;
    pub mod replay;
    pub mod serving;
    pub mod setup;
    pub mod standard;
}
