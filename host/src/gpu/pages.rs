//! Copies of whole pages within a cache.

use bytemuck::bytes_of;
use tilewright_kernels::{
    abi::{self, PageTensor},
    page_copy::{self, PAGE_COPY},
};

use super::{
    Driver, GpuCache, GpuDevice,
    storage::{WORD, dim, shape},
};
use crate::{Result, batch::check_copies};

/// Bytes of a [`PageTensor`]: what follows an array of them is aligned as they are.
const TENSOR_BYTES: usize = size_of::<PageTensor>();

impl<Dr: Driver> GpuDevice<Dr> {
    pub(super) fn launch_copy_pages(&self, cache: &mut GpuCache<Dr>, copies: &[(u32, u32)]) -> Result<()> {
        let op = "copy_pages";
        let spec = cache.spec;
        check_copies(copies, spec.pages)?;
        if copies.is_empty() || spec.layers == 0 {
            return Ok(());
        }
        let vectors = spec.kv_heads * spec.page_size;
        let (page_bytes, scale_bytes) = ((vectors * cache.vector_bytes()) as u64, (vectors * WORD) as u64);
        let (mut words, mut tensors) = (Vec::new(), 0);
        for layer in 0..spec.layers {
            let planes = cache.layer(op, layer)?;
            let elements = planes.elements.map(|address| (address, page_bytes));
            let scales = planes.scales.map(|address| (address, scale_bytes));
            for (address, page_bytes) in
                elements.into_iter().chain(scales).filter(|&(address, _)| address != 0)
            {
                words.extend_from_slice(bytes_of(&PageTensor { address, page_bytes, stage_offset: 0 }));
                tensors += 1;
            }
        }
        let tensors = dim(op, "layers", tensors)?;
        for (from, to) in copies {
            words.extend_from_slice(bytes_of(&[*from, *to]));
        }
        let Some(grid) = page_copy::grid(page_bytes, tensors, dim(op, "copies", copies.len())?) else {
            return Err(shape(op, "copies", "as many as a grid has blocks", copies.len()));
        };
        let (buffer, address) = self.allocate(op, &[words.len()], "copies of pages")?;
        self.upload(&buffer, 0, &words)?;
        let params = abi::PageCopy {
            tensors: address,
            pages: address + (tensors as usize * TENSOR_BYTES) as u64,
            staging: 0,
            record_bytes: 0,
            blocks_per_page: page_copy::blocks_per_page(page_bytes),
            reserved: 0,
        };
        // SAFETY: the tensors are the cache's layers, whose pages have those bytes each; `check_copies` found the pages within
        // it and none in the way of another; both lists are in the buffer, which is freed in the order of the stream.
        unsafe { self.launch(&PAGE_COPY, grid, params) }
    }
}
