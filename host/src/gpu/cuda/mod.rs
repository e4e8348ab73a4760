//! The driver of NVIDIA GPUs.
