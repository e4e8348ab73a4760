//! The most that this CPU is seen to do: what its operations are held against.

use std::time::{Duration, Instant};

use super::CpuDevice;
use super::buffer::Buffer;
use super::isa::{Isa, Kernel, LANES};
use super::parallel;

/// Bytes read a pass: more than the caches of most machines.
pub const READ_BYTES: usize = 256 << 20;
/// Bytes read a pass at least: of fewer the threads' start would be what is measured.
const LEAST_READ_BYTES: usize = 1 << 20;
/// Parts of them, handed out to threads.
const READ_TASKS: usize = 64;
/// Multiply-adds of each accumulator in a task.
const ROUNDS: usize = 1 << 16;
/// Accumulators: with two constants of two registers each they fill the sixteen registers of AVX2, and cover the latency of its two units.
const ACCUMULATORS: usize = 6;
/// How long each is measured.
const BUDGET: Duration = Duration::from_millis(400);

/// What a CPU was seen to do, all threads together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes a second read from memory.
    pub read_bytes_per_second: f64,
    /// f32 operations a second in registers, a multiply-add being two.
    pub flops_per_second: f64,
    /// Threads.
    pub threads: usize,
}

impl CpuDevice {
    /// Measures bandwidth and peak, each by its best run within about half a second. The pool's threads must have nothing else to do.
    pub fn measure_ceilings(&self) -> Ceilings {
        Ceilings {
            read_bytes_per_second: self.read_rate(READ_BYTES),
            flops_per_second: self.multiply_rate(),
            threads: parallel::threads(),
        }
    }

    /// Bytes a second where the same `bytes` are read again and again, so that caches give what fits them; of more than 256 MiB, memory's rate.
    /// Takes half a second, in which the pool's threads must have nothing else to do. Not a number where there is no room for them.
    pub fn read_rate(&self, bytes: usize) -> f64 {
        let bytes = bytes.clamp(LEAST_READ_BYTES, READ_BYTES);
        let Ok(mut buffer) = Buffer::<f32>::zeroed(&[bytes / size_of::<f32>()], "the ceiling of reading")
        else {
            return f64::NAN;
        };
        // Pages that nobody wrote are all the same one.
        buffer.iter_mut().step_by(1024).for_each(|elem| *elem = 1.0);
        let part = buffer.len() / READ_TASKS;
        let pass = || {
            parallel::run(READ_TASKS, |task| {
                let part = &buffer[task * part..][..part];
                let mut sum = 0.0;
                self.level.run(Sum { part, sum: &mut sum });
                std::hint::black_box(sum);
            });
        };
        (part * READ_TASKS * size_of::<f32>()) as f64 / fastest(pass)
    }

    fn multiply_rate(&self) -> f64 {
        let tasks = 4 * parallel::threads();
        let pass = || {
            parallel::run(tasks, |task| {
                let mut sum = task as f32;
                self.level.run(Multiply { sum: &mut sum });
                std::hint::black_box(sum);
            });
        };
        2.0 * (tasks * ROUNDS * ACCUMULATORS * LANES) as f64 / fastest(pass)
    }
}

/// Seconds of the fastest of several passes.
fn fastest(mut pass: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut best = f64::INFINITY;
    while began.elapsed() < BUDGET || best.is_infinite() {
        let start = Instant::now();
        pass();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// The sum of a part, to read it.
struct Sum<'a> {
    part: &'a [f32],
    sum: &'a mut f32,
}

impl Kernel for Sum<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut sums = [isa.zero(); ACCUMULATORS];
        for chunk in self.part.chunks_exact(ACCUMULATORS * LANES) {
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a chunk holds sixteen for each accumulator.
                let values = unsafe { isa.load(chunk.as_ptr().add(index * LANES)) };
                *sum = isa.add(*sum, values);
            }
        }
        *self.sum = sums.iter().map(|sum| isa.reduce_sum(*sum)).sum();
    }
}

/// Multiply-adds that depend on nothing but themselves.
struct Multiply<'a> {
    sum: &'a mut f32,
}

impl Kernel for Multiply<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (factor, term) = (isa.splat(0.999), isa.splat(*self.sum));
        let mut sums = [term; ACCUMULATORS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = isa.fma(*sum, factor, term);
            }
        }
        *self.sum = sums.iter().map(|sum| isa.reduce_sum(*sum)).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_positive_and_of_a_machine_of_this_age() {
        let ceilings = CpuDevice::new().measure_ceilings();
        assert!(
            ceilings.read_bytes_per_second > 1e8 && ceilings.read_bytes_per_second < 1e14,
            "{ceilings:?}"
        );
        assert!(ceilings.flops_per_second > 1e8 && ceilings.flops_per_second < 1e15, "{ceilings:?}");
        assert!(ceilings.threads > 0);
    }

    #[test]
    fn few_bytes_are_read_at_some_rate_too() {
        for bytes in [0, 3 << 20] {
            let rate = CpuDevice::new().read_rate(bytes);
            assert!(rate > 1e8 && rate < 1e14, "{bytes}: {rate}");
        }
    }
}
