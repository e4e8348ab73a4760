//! Launches that start before those before them have ended.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, FaultKind, Launch, Order};

/// Writes `x`, or copies it to `out`; behind a barrier warp 0 alone waits for the launch before.
#[derive(Clone, Copy)]
enum Step {
    Write,
    Copy { waits: bool },
    CopyBehindBarrier,
}

struct Subject {
    device: Device,
    x: u64,
    out: u64,
}

impl Subject {
    fn new() -> Subject {
        let mut device = Device::new();
        let (x, out) = (device.alloc(256, "x"), device.alloc(256, "out"));
        Subject { device, x, out }
    }

    fn run(&mut self, step: Step) -> Result<(), String> {
        let (x, out) = (self.x, self.out);
        let launch =
            Launch { name: "step", grid: [1; 3], threads: 64, shared_bytes: 0, order: Order::Deterministic };
        let kernel = || {
            let at = 4 * u64::from(tid_x());
            match step {
                Step::Write => {
                    griddepcontrol_wait();
                    st_global(x + at, tid_x());
                }
                Step::Copy { waits } => {
                    if waits {
                        griddepcontrol_wait();
                    }
                    st_global(out + at, ld_global::<u32>(x + at));
                }
                Step::CopyBehindBarrier => {
                    if tid_x() < 32 {
                        griddepcontrol_wait();
                    }
                    bar_sync();
                    st_global(out + at, ld_global::<u32>(x + at));
                }
            }
        };
        self.device.launch(&launch, &kernel).map(drop).map_err(|fault| {
            assert_eq!(fault.kind, FaultKind::Race);
            fault.to_string()
        })
    }
}

#[test]
fn what_an_earlier_launch_wrote_is_read_behind_the_wait_alone() {
    let mut subject = Subject::new();
    subject.device.start_early(true);
    subject.run(Step::Write).expect("nobody wrote before");
    let fault = subject.run(Step::Copy { waits: false }).expect_err("the launch before may still run");
    assert!(
        fault.ends_with("unordered with a write of an earlier launch, which was not waited for"),
        "{fault}"
    );
    subject.run(Step::Copy { waits: true }).expect("it has waited");
    subject.run(Step::CopyBehindBarrier).expect("the barrier tells all");
}

#[test]
fn launches_before_a_copy_or_one_that_starts_late_have_ended() {
    let mut subject = Subject::new();
    subject.device.start_early(true);
    subject.run(Step::Write).expect("nobody wrote before");
    subject.device.end_launches();
    subject.run(Step::Copy { waits: false }).expect("the host waited");
    subject.run(Step::Write).expect("it waits for the reads");
    subject.device.start_early(false);
    subject.run(Step::Copy { waits: false }).expect("it starts when all have ended");
    subject.device.start_early(true);
    subject.run(Step::Write).expect("it waits for the reads");
    // Two launches on, the writer may run still: nobody between has waited.
    let other = subject.device.alloc(4, "other");
    let launch =
        Launch { name: "idle", grid: [1; 3], threads: 1, shared_bytes: 0, order: Order::Deterministic };
    subject.device.launch(&launch, &|| st_global(other, 1u32)).expect("nobody else writes it");
    subject.run(Step::Copy { waits: false }).expect_err("the writer may still run");
}
