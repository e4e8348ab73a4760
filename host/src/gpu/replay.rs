//! Steps like earlier ones, whose launches are made as one.
//!
//! Launches name addresses and sizes, not what is there. So a step of generated tokens whose plan has the shape of an earlier step's is
//! done by that step's launches, once its metadata lies where the earlier one's lay. A shape's first step is launched as it comes; its
//! second is recorded instead of launched, made a graph of, and replayed; later ones are replayed at once.
//!
//! A record names scratch, too: it is of no use any more once scratch has moved.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::ThreadId,
};

use tilewright_kernels::abi::KernelSpec;

use super::{Driver, GpuDevice, GpuStep, Launch, ahead, append, step::StepPlan};
use crate::{Batch, Error, Pace, Result};

/// Shapes that are kept; of more, the one that was used last longest ago is forgotten.
const MOST_SHAPES: usize = 64;

/// The steps of one model, cache and set of activations, whose launches can be made again.
pub struct GpuReplays<Dr: Driver> {
    /// The one used last at the end.
    shapes: Vec<Shape<Dr>>,
    /// The driver has no graphs.
    is_off: bool,
}

impl<Dr: Driver> Default for GpuReplays<Dr> {
    fn default() -> Self {
        GpuReplays { shapes: Vec::new(), is_off: false }
    }
}

struct Shape<Dr: Driver> {
    plan: StepPlan,
    step: GpuStep<Dr>,
    words: usize,
    record: Option<Record<Dr>>,
}

struct Record<Dr: Driver> {
    graph: Dr::Graph,
    scratch_moves: u64,
}

/// Launches that are noted instead of made, of the threads that asked for it.
#[derive(Default)]
pub(super) struct Recording {
    threads: AtomicUsize,
    launches: Mutex<Vec<(ThreadId, Vec<Launch>)>>,
}

impl Recording {
    fn lock(&self) -> MutexGuard<'_, Vec<(ThreadId, Vec<Launch>)>> {
        // A panic while it was held leaves launches that are there or not.
        self.launches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this thread's launches are noted, which this one then is.
    pub fn takes(&self, spec: &'static KernelSpec, grid: [u32; 3], params: &[u8]) -> bool {
        if self.threads.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let thread = std::thread::current().id();
        let mut launches = self.lock();
        let Some((_, own)) = launches.iter_mut().find(|(of, _)| *of == thread) else { return false };
        own.push(Launch { spec, grid, params: params.to_vec() });
        true
    }

    /// The launches of `work`, noted.
    fn of<E>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Vec<Launch>, E> {
        /// Ends it even if the work panics.
        struct Ends<'r>(&'r Recording, ThreadId);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.lock().retain(|(thread, _)| *thread != self.1);
                self.0.threads.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let thread = std::thread::current().id();
        self.lock().push((thread, Vec::new()));
        self.threads.fetch_add(1, Ordering::Relaxed);
        let _ends = Ends(self, thread);
        work()?;
        let mut launches = self.lock();
        let own = launches.iter_mut().find(|(of, _)| *of == thread);
        Ok(own.map(|(_, own)| std::mem::take(own)).unwrap_or_default())
    }
}

impl<Dr: Driver> GpuReplays<Dr> {
    /// A shape of before, now at the end of the list.
    fn find(&mut self, shape: &StepPlan, words: usize) -> Option<&mut Shape<Dr>> {
        let at = self.shapes.iter().rposition(|held| held.words == words && held.plan == *shape)?;
        let shape = self.shapes.remove(at);
        self.shapes.push(shape);
        self.shapes.last_mut()
    }

    fn add(&mut self, shape: Shape<Dr>) {
        if self.shapes.len() == MOST_SHAPES {
            self.shapes.remove(0);
        }
        self.shapes.push(shape);
    }
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// As [`crate::Device::run_step`].
    pub(super) fn run_or_replay<E: From<Error>>(
        &self,
        batch: &Batch,
        replays: &mut GpuReplays<Dr>,
        mut work: impl FnMut(&GpuStep<Dr>) -> Result<(), E>,
    ) -> Result<Pace, E> {
        let tokens = batch.tokens();
        if replays.is_off || tokens == 0 || batch.generated_rows() != tokens {
            work(&self.make_step(batch)?)?;
            return Ok(Pace::Steady);
        }
        let (plan, words) = StepPlan::rounded(batch)?;
        let plan_shape = plan.shape();
        let Some(shape) = replays.find(&plan_shape, words.len()) else {
            let step = self.place_step(plan, &words)?;
            work(&step)?;
            replays.add(Shape { plan: plan_shape, step, words: words.len(), record: None });
            return Ok(Pace::First);
        };
        // Launches that were checked against less are checked anew, and refused by whoever finds the fault.
        let admits = shape.step.admits(&plan);
        shape.step.rewrite(self, plan, &words)?;
        if !admits {
            work(&shape.step)?;
            return Ok(Pace::First);
        }
        let mut pace = Pace::Steady;
        let fresh = |record: &Record<Dr>| record.scratch_moves == self.scratch_moves.load(Ordering::Relaxed);
        if !shape.record.as_ref().is_some_and(fresh) {
            shape.record = None;
            pace = Pace::First;
            let mut launches = self.recording.of(|| work(&shape.step))?;
            if !self.appends_apart.load(Ordering::Relaxed) {
                launches = append::appended(launches);
            }
            launches = self.chained(launches)?;
            ahead::bring_next_weights(&mut launches);
            // Recording may itself have moved scratch; what it noted last is where it is now.
            let scratch_moves = self.scratch_moves.load(Ordering::Relaxed);
            // SAFETY: what the operations launch, whose arguments live as long as the replays that are theirs; scratch is where it
            // was, or the record isn't used.
            match unsafe { self.driver.graph(&launches)? } {
                Some(graph) => shape.record = Some(Record { graph, scratch_moves }),
                None => {
                    replays.is_off = true;
                    for Launch { spec, grid, params } in &launches {
                        // SAFETY: as above.
                        unsafe { self.driver.launch(spec, *grid, params)? };
                    }
                    return Ok(pace);
                }
            }
        }
        if let Some(record) = &shape.record {
            // SAFETY: as above: the record is fresh, and the plan within what the operations checked.
            unsafe { self.driver.replay(&record.graph)? };
        }
        Ok(pace)
    }
}
