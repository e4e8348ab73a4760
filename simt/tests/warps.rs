//! What orders the lanes of a warp, and what of it a release by one of them covers.

mod support;

use support::orders;
use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report};

fn run(threads: u32, order: Order, kernel: &dyn Fn()) -> Result<Report, Fault> {
    let launch = Launch { name: "warps", grid: [1; 3], threads, shared_bytes: 4096, order };
    Device::new().launch(&launch, kernel)
}

fn right(threads: u32, kernel: &dyn Fn()) {
    for order in orders(20) {
        run(threads, order, kernel).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

fn caught(threads: u32, kernel: &dyn Fn()) -> Fault {
    support::caught(include_str!("warps.rs"), 20, FaultKind::Race, |order| run(threads, order, kernel))
}

fn lane() -> u32 {
    tid_x() % 32
}

/// The word of thread `i`.
fn slot(i: u32) -> u32 {
    shared_base() + 4 * i
}

fn bar(i: u32) -> u32 {
    shared_base() + 1024 + 8 * i
}

/// Sixteen bytes for `ldmatrix`.
fn row() -> u32 {
    shared_base() + 2048 + 16 * tid_x()
}

/// Makes mbarriers of one arrival a phase.
fn init(count: u32) {
    if tid_x() == 0 {
        (0..count).for_each(|i| mbarrier_init(bar(i), 1));
    }
    st_shared(row(), [0u32; 4]);
    bar_sync();
}

fn wait(i: u32) {
    while !mbarrier_try_wait_parity(bar(i), 0) {}
}

/// All that lanes of a warp meet in and that orders nothing.
fn meetings() -> [(&'static str, fn()); 9] {
    [
        ("shfl.bfly", || {
            shfl_bfly(1, 1);
        }),
        ("shfl.idx", || {
            shfl_idx(1, 0);
        }),
        ("shfl.down", || {
            shfl_down(1, 1);
        }),
        ("shfl.up", || {
            shfl_up(1, 1);
        }),
        ("vote.ballot", || {
            ballot(true);
        }),
        ("elect", || {
            elect();
        }),
        ("ldmatrix", || {
            ldmatrix_x4(row());
        }),
        ("mma", || {
            mma_m16n8k16_bf16([0; 4], [0; 2], [0.0; 4]);
        }),
        ("wgmma.fence", wgmma_fence),
    ]
}

#[test]
fn lanes_that_merely_meet_have_seen_nothing_of_each_other() {
    for (name, meet) in meetings() {
        println!("{name}");
        let kernel = |synchronise: bool| {
            init(1);
            st_shared(slot(tid_x()), tid_x());
            meet();
            if synchronise {
                bar_warp_sync();
            }
            assert_eq!(ld_shared::<u32>(slot(tid_x() ^ 1)), tid_x() ^ 1); // caught
            meet();
            if synchronise {
                bar_warp_sync();
            }
            st_shared(slot(tid_x()), 0u32);
        };
        right(64, &|| kernel(true));
        caught(64, &|| kernel(false));
        // A read that another lane's write comes after.
        caught(32, &|| {
            init(1);
            ld_shared::<u32>(row());
            meet();
            st_shared(row() ^ 16, 1u32); // caught
        });
    }
}

#[test]
fn a_stage_given_back_by_one_lane() {
    // The lanes of warp 1 read a stage, meet, and one of them gives it back to warp 0, which fills it again.
    for (name, meet) in meetings() {
        println!("{name}");
        let kernel = |synchronise: bool, giver: u32| {
            st_shared(slot(tid_x()), tid_x());
            init(1);
            if tid_x() < 32 {
                wait(0);
                meet();
                st_shared(slot(32 + lane()), 7u32); // caught
                return;
            }
            assert_eq!(ld_shared::<u32>(slot(tid_x())), tid_x());
            meet();
            if synchronise {
                bar_warp_sync();
            }
            if lane() == giver {
                mbarrier_arrive(bar(0));
            }
        };
        for giver in [0, 31] {
            right(64, &|| kernel(true, giver));
            caught(64, &|| kernel(false, giver));
        }
    }
}

#[test]
fn a_lane_releases_what_it_has_done_itself() {
    right(64, &|| {
        init(1);
        match tid_x() {
            5 => {
                st_shared(slot(0), 1u32);
                mbarrier_arrive(bar(0));
            }
            32.. => {
                wait(0);
                assert_eq!(ld_shared::<u32>(slot(0)), 1);
            }
            _ => {}
        }
    });
    // And nothing that it does later.
    caught(64, &|| {
        init(1);
        match tid_x() {
            5 => {
                mbarrier_arrive(bar(0));
                st_shared(slot(0), 1u32); // caught
            }
            32 => {
                wait(0);
                st_shared(slot(0), 2u32); // caught
            }
            _ => {}
        }
    });
}

#[test]
fn an_arrival_orders_nothing_within_its_warp() {
    caught(32, &|| {
        init(1);
        st_shared(slot(tid_x()), 1u32);
        if lane() == 0 {
            mbarrier_arrive(bar(0));
        }
        ballot(true);
        ld_shared::<u32>(slot(tid_x() ^ 3)); // caught
    });
    // Nor does an arrival of the whole warp at a barrier that it doesn't wait at.
    let arrivals: [fn(); 2] = [|| bar_arrive_named(1, 64), cluster_arrive];
    for arrive in arrivals {
        caught(64, &|| match tid_x() / 32 {
            0 => {
                st_shared(slot(tid_x()), 1u32);
                arrive();
                ld_shared::<u32>(slot(tid_x() ^ 1)); // caught
            }
            _ => bar_sync_named(1, 64),
        });
    }
    // The wait for it does.
    right(64, &|| {
        st_shared(slot(tid_x()), tid_x());
        cluster_arrive();
        cluster_wait();
        assert_eq!(ld_shared::<u32>(slot(tid_x() ^ 1)), tid_x() ^ 1);
    });
    caught(64, &|| {
        cluster_arrive();
        st_shared(slot(tid_x()), tid_x());
        cluster_wait();
        ld_shared::<u32>(slot(tid_x() ^ 1)); // caught
    });
    // And an mbarrier that all lanes arrive and wait at.
    right(64, &|| {
        if tid_x() == 0 {
            mbarrier_init(bar(0), 64);
        }
        bar_sync();
        st_shared(slot(tid_x()), tid_x());
        mbarrier_arrive(bar(0));
        wait(0);
        assert_eq!(ld_shared::<u32>(slot(tid_x() ^ 1)), tid_x() ^ 1);
    });
}

#[test]
fn what_was_ordered_before_goes_through_others() {
    // Lane 33 of warp 1 tells warp 2, whose lane 70 tells warp 0.
    let chain = |synchronise: bool| {
        init(2);
        match tid_x() / 32 {
            1 => {
                st_shared(slot(tid_x()), tid_x());
                match synchronise {
                    true => bar_warp_sync(),
                    false => drop(ballot(true)),
                }
                if tid_x() == 33 {
                    mbarrier_arrive(bar(0));
                }
            }
            2 => {
                wait(0);
                if tid_x() == 70 {
                    mbarrier_arrive(bar(1));
                }
            }
            _ => {
                wait(1);
                assert_eq!(ld_shared::<u32>(slot(33)), 33);
                assert_eq!(ld_shared::<u32>(slot(32)), 32); // caught
            }
        }
    };
    right(96, &|| chain(true));
    caught(96, &|| chain(false));
}

#[test]
fn a_fence_of_one_lane_releases_its_own_stores() {
    // Each block's warp writes, one of its lanes counts it done; the last block reads.
    let mut device = Device::new();
    let (x, counter) = (device.alloc(4 * 64, "x"), device.alloc(4, "counter"));
    device.write(counter, &[0; 4]);
    let mut run = |order: Order, kernel: &dyn Fn()| {
        let launch = Launch { name: "fences", grid: [2, 1, 1], threads: 32, shared_bytes: 0, order };
        device.write(counter, &[0; 4]);
        device.launch(&launch, kernel)
    };
    let word = |block: u32, lane: u32| x + 4 * u64::from(32 * block + lane);
    let kernel = |synchronise: bool, theirs: u32| {
        st_global(word(ctaid_x(), lane()), lane());
        match synchronise {
            true => bar_warp_sync(),
            false => drop(ballot(true)),
        }
        let mut before = 0;
        if lane() == 0 {
            fence_acq_rel_gpu();
            before = atom_add_global(counter, 1u32);
            fence_acq_rel_gpu();
        }
        if shfl_idx(before, 0) == 1 && lane() == 0 {
            assert_eq!(ld_global::<u32>(word(0, theirs)), theirs); // caught
        }
    };
    for order in orders(20) {
        for (synchronise, theirs) in [(true, 9), (true, 0), (false, 0)] {
            run(order, &|| kernel(synchronise, theirs)).unwrap_or_else(|fault| panic!("{fault}"));
        }
    }
    support::caught(include_str!("warps.rs"), 20, FaultKind::Race, |order| run(order, &|| kernel(false, 9)));
}
