use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that [`run`] spreads over.
pub(super) fn threads() -> usize {
    rayon::current_num_threads()
}

/// How often a thread without a task looks whether the last ones are done before it sleeps: some tens of microseconds, about what
/// sleeping and being woken takes.
const LOOKS: usize = 2000;

/// Calls `task` with each of `0..tasks`, once each, handed out in ascending order to whichever thread is free: the caller's and those
/// of rayon's pool, as many as the pool has. One task is run where it is, without the microseconds that waking a thread takes.
pub(super) fn run(tasks: usize, task: impl Fn(usize) + Sync) {
    let helpers = threads().min(tasks).saturating_sub(1);
    if helpers == 0 {
        return (0..tasks).for_each(task);
    }
    // Which thread takes which task, and how many are done, carries no data: the scope's end does.
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let drain = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                break;
            }
            task(index);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    // In place, for a caller outside of the pool would otherwise sleep meanwhile: every operation would wait for one thread to be
    // woken at its beginning and for another at its end.
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| drain());
        }
        drain();
        for _ in 0..LOOKS {
            if done.load(Ordering::Relaxed) == tasks {
                break;
            }
            std::hint::spin_loop();
        }
    });
}

/// Calls `task` with consecutive ranges that cover `0..rows`, in parallel when the rows hold enough elements to pay for it.
pub(super) fn rows(rows: usize, elems_per_row: usize, task: impl Fn(std::ops::Range<usize>) + Sync) {
    /// Elements that take about as long as waking a thread.
    const WORTH_A_TASK: usize = 32 * 1024;
    let tasks = (rows * elems_per_row / WORTH_A_TASK).clamp(1, 4 * threads()).min(rows.max(1));
    run(tasks, |index| task(rows * index / tasks..rows * (index + 1) / tasks));
}

/// A pointer that tasks share; each writes its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);

// SAFETY: it is but an address; whoever dereferences it answers for the access.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr())
    }

    /// The address of element `index`.
    ///
    /// # Safety
    /// `index` is within the slice it was made of.
    #[inline(always)]
    pub(super) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(index) }
    }

    /// `len` elements from `index`.
    ///
    /// # Safety
    /// They are within the slice it was made of, which outlives the result, and nobody else touches them meanwhile.
    #[inline(always)]
    pub(super) unsafe fn slice<'a>(self, index: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(index), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for tasks in [0, 1, 2, 3, 17, 1000] {
            let once = || {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                run(tasks, |index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            };
            once();
            pool.install(once);
        }
    }

    #[test]
    fn ranges_cover_the_rows() {
        for (count, elems) in [(0, 5), (1, 1 << 20), (7, 1 << 16), (1000, 4096)] {
            let total = AtomicUsize::new(0);
            rows(count, elems, |range| {
                total.fetch_add(range.len(), Ordering::Relaxed);
            });
            assert_eq!(total.into_inner(), count);
        }
    }
}
