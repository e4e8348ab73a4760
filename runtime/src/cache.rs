//! A contiguous KV cache: one page a sequence, as long as the longest sequence may grow.

use tilewright_host::{CacheSpec, Device, KvDType};

use crate::config::ModelConfig;
use crate::{Error, Result};

/// What a cache stores, by its name on a command line: auto, int8 or fp8.
///
/// # Errors
/// Names those three for any other.
pub fn kv_dtype(name: &str) -> Result<KvDType> {
    let known = KvDType::ALL.into_iter().find(|dtype| dtype.name() == name);
    let expected = "auto (bf16 on a GPU, f32 on a CPU), int8 or fp8";
    known.ok_or_else(|| Error::request("kv-dtype", expected, format!("{name:?}")))
}

/// Places are a multiple of this many tokens, which the tiles of every attention kernel divide.
const PLACE_TOKENS: usize = 128;

/// Keys and values of up to `slots` sequences of up to `capacity` tokens.
pub struct ContiguousCache<D: Device> {
    /// The device's cache.
    pub cache: D::Cache,
    capacity: usize,
    slots: SlotPool,
}

impl<D: Device> ContiguousCache<D> {
    /// Reserves the memory.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(
        device: &D,
        config: &ModelConfig,
        slots: usize,
        capacity: usize,
        dtype: KvDType,
    ) -> Result<Self> {
        let spec = CacheSpec {
            layers: config.layers,
            pages: slots,
            page_size: capacity.next_multiple_of(PLACE_TOKENS),
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype,
        };
        Ok(ContiguousCache { cache: device.cache(spec)?, capacity, slots: SlotPool::new(slots) })
    }

    /// Tokens a sequence can grow to.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens a page, which is a sequence's place: the capacity, rounded up.
    pub fn page_size(&self) -> usize {
        self.capacity.next_multiple_of(PLACE_TOKENS)
    }

    /// Takes a sequence's place.
    ///
    /// # Errors
    /// If all are taken.
    pub fn acquire(&mut self) -> Result<u32> {
        let total = self.slots.total;
        self.slots.acquire().ok_or_else(|| {
            Error::request("sequences", format!("at most {total} at a time"), format!("{}", total + 1))
        })
    }

    /// Gives a sequence's place back.
    pub fn release(&mut self, slot: u32) {
        self.slots.release(slot);
    }
}

/// Which places are free; the lowest is taken first.
#[derive(Debug)]
struct SlotPool {
    free: Vec<u32>,
    total: usize,
}

impl SlotPool {
    fn new(total: usize) -> SlotPool {
        SlotPool { free: (0..total as u32).rev().collect(), total }
    }

    fn acquire(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn release(&mut self, slot: u32) {
        debug_assert!(!self.free.contains(&slot), "slot {slot} given back twice");
        let at = self.free.partition_point(|&other| other > slot);
        self.free.insert(at, slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_named() {
        for dtype in KvDType::ALL {
            assert_eq!(kv_dtype(dtype.name()).ok(), Some(dtype));
        }
        assert_eq!(
            kv_dtype("int3").expect_err("no such format").to_string(),
            "kv-dtype: expected auto (bf16 on a GPU, f32 on a CPU), int8 or fp8, found \"int3\""
        );
    }

    #[test]
    fn places_are_handed_out_once() {
        let mut pool = SlotPool::new(3);
        assert_eq!(
            [pool.acquire(), pool.acquire(), pool.acquire(), pool.acquire()],
            [Some(0), Some(1), Some(2), None]
        );
        pool.release(2);
        pool.release(0);
        assert_eq!([pool.acquire(), pool.acquire(), pool.acquire()], [Some(0), Some(2), None]);
    }
}
