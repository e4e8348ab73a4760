//! Blocks of a cluster: their barrier, each other's shared memory, their ends.

mod support;

use support::orders;
use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report};

const THREADS: u32 = 64;

fn run(
    device: &mut Device,
    blocks: u32,
    cluster: u32,
    order: Order,
    kernel: &dyn Fn(),
) -> Result<Report, Fault> {
    let launch =
        Launch { name: "cluster", grid: [blocks, 2, 1], threads: THREADS, shared_bytes: 1024, order };
    device.launch_clusters(&launch, cluster, kernel)
}

fn caught(device: &mut Device, kind: FaultKind, kernel: &dyn Fn()) -> Fault {
    support::caught(include_str!("clusters.rs"), 8, kind, |order| run(device, 4, 2, order, kernel))
}

fn sync() {
    cluster_arrive();
    cluster_wait();
}

/// A word of the own block's memory, and of that of the block of `rank`.
fn slot(i: u32) -> u32 {
    shared_base() + 4 * i
}

fn next() -> u32 {
    (cluster_ctarank() + 1) % cluster_nctarank()
}

fn read(device: &mut Device, out: u64, count: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * count];
    device.read(out, &mut bytes).unwrap_or_else(|fault| panic!("{fault}"));
    bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

#[test]
fn blocks_read_and_write_each_other() {
    let mut device = Device::new();
    for (blocks, cluster) in [(4, 1), (4, 2), (8, 4), (8, 8), (6, 3), (16, 16)] {
        let count = (blocks * 2 * THREADS) as usize;
        let (gets, puts) = (device.alloc(4 * count, "gets"), device.alloc(4 * count, "puts"));
        let kernel = || {
            let own = (ctaid_y() * nctaid_x() + ctaid_x()) * THREADS + tid_x();
            st_shared(slot(tid_x()), own);
            sync();
            // What the next block wrote, from the other end; then into the next block.
            let theirs = ld_shared_cluster::<u32>(mapa(slot(THREADS - 1 - tid_x()), next()));
            st_shared_cluster(mapa(slot(THREADS + tid_x()), next()), 1000 + own);
            sync();
            st_global(gets + 4 * u64::from(own), theirs);
            st_global(puts + 4 * u64::from(own), ld_shared::<u32>(slot(THREADS + tid_x())));
        };
        for order in orders(12) {
            let report = run(&mut device, blocks, cluster, order, &kernel);
            let report = report.unwrap_or_else(|fault| panic!("{blocks} in {cluster}: {fault}"));
            assert_eq!(report.blocks, u64::from(2 * blocks));
            let (gets, puts) = (read(&mut device, gets, count), read(&mut device, puts, count));
            for i in 0..count as u32 {
                let (block, thread) = (i / THREADS, i % THREADS);
                let (first, rank) = (block / cluster * cluster, block % cluster);
                let after = (first + (rank + 1) % cluster) * THREADS;
                assert_eq!(gets[i as usize], after + THREADS - 1 - thread, "{blocks} in {cluster}: {i}");
                let before = (first + (rank + cluster - 1) % cluster) * THREADS;
                assert_eq!(puts[i as usize], 1000 + before + thread, "{blocks} in {cluster}: {i}");
            }
        }
    }
}

#[test]
fn each_block_has_threads_barriers_and_atomics_of_its_own() {
    let mut device = Device::new();
    let out = device.alloc(4 * 8, "out");
    let kernel = || {
        if tid_x() == 0 {
            st_shared(slot(0), 0u32);
        }
        // Named barriers meet within a block: one block's second warp comes late.
        bar_sync_named(3, THREADS);
        atom_add_shared(slot(0), 1 + cluster_ctarank());
        bar_sync();
        sync();
        if tid_x() == 0 {
            atom_add_shared_cluster(mapa(slot(0), next()), 1000u32);
        }
        sync();
        if tid_x() == 0 {
            st_global(out + 4 * u64::from(4 * ctaid_y() + ctaid_x()), ld_shared::<u32>(slot(0)));
        }
    };
    for order in orders(12) {
        run(&mut device, 4, 2, order, &kernel).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(read(&mut device, out, 8), [1064, 1128, 1064, 1128, 1064, 1128, 1064, 1128]);
    }
}

#[test]
fn a_missing_half_of_the_barrier_is_a_race() {
    let mut device = Device::new();
    // Writes into the other block, meets it by `meet`, and reads what the other wrote.
    let exchange = |meet: &dyn Fn(), end: &dyn Fn()| {
        st_shared(slot(tid_x()), tid_x());
        sync();
        st_shared_cluster(mapa(slot(tid_x()), next()), 7u32); // caught
        meet();
        ld_shared::<u32>(slot(tid_x())); // caught
        end();
    };
    run(&mut device, 4, 2, Order::Seeded(5), &|| exchange(&sync, &sync))
        .unwrap_or_else(|fault| panic!("{fault}"));
    let fault = caught(&mut device, FaultKind::Race, &|| exchange(&|| (), &sync));
    assert!(fault.to_string().contains("of rank"), "{fault}");
    // Who arrives without release, or reads before it has waited.
    caught(&mut device, FaultKind::Race, &|| {
        let relaxed = || {
            cluster_arrive_relaxed();
            cluster_wait();
        };
        exchange(&relaxed, &sync);
    });
    caught(&mut device, FaultKind::Race, &|| exchange(&cluster_arrive, &cluster_wait));
    // The block's own barrier does not order its neighbour.
    caught(&mut device, FaultKind::Race, &|| exchange(&bar_sync, &sync));
}

#[test]
fn memory_of_a_block_that_may_have_ended() {
    let mut device = Device::new();
    let fault = caught(&mut device, FaultKind::Exited, &|| {
        st_shared(slot(tid_x()), 1u32);
        sync();
        ld_shared_cluster::<u32>(mapa(slot(tid_x()), next())); // caught
    });
    assert!(fault.to_string().contains("shared memory of rank"), "{fault}");
    // One block waits for the other; the other doesn't.
    caught(&mut device, FaultKind::Exited, &|| {
        st_shared(slot(tid_x()), 1u32);
        sync();
        if cluster_ctarank() == 1 {
            st_shared_cluster(mapa(slot(tid_x()), 0), 1u32);
            cluster_arrive();
            cluster_wait();
            ld_shared_cluster::<u32>(mapa(slot(tid_x()), 0)); // caught
        } else {
            cluster_arrive();
            cluster_wait();
        }
    });
    // Arrivals at a barrier of a block that doesn't wait for all of them.
    caught(&mut device, FaultKind::Exited, &|| {
        let bar = shared_base() + 512;
        if tid_x() == 0 {
            mbarrier_init(bar, 2);
        }
        sync();
        if tid_x() == 0 && cluster_ctarank() == 1 {
            mbarrier_arrive_cluster(mapa(bar, 0)); // caught
        }
    });
    // It is enough that one warp of the block waits.
    for order in orders(12) {
        let ran = run(&mut device, 4, 2, order, &|| {
            let bar = shared_base() + 512;
            if tid_x() == 0 {
                mbarrier_init(bar, 2);
            }
            sync();
            if tid_x().is_multiple_of(32) && cluster_ctarank() == 1 {
                mbarrier_arrive_cluster(mapa(bar, 0));
            }
            if tid_x() == 40 && cluster_ctarank() == 0 {
                while !mbarrier_try_wait_parity(bar, 0) {}
            }
        });
        ran.unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn arrivals_of_another_block_release() {
    let mut device = Device::new();
    let kernel = |arrive: bool| {
        let bar = shared_base() + 512;
        if tid_x() == 0 {
            mbarrier_init(bar, 32);
        }
        sync();
        if cluster_ctarank() == 1 && tid_x() < 32 {
            st_shared_cluster(mapa(slot(tid_x()), 0), tid_x()); // caught
            if arrive {
                mbarrier_arrive_cluster(mapa(bar, 0));
            }
        }
        if cluster_ctarank() == 0 && tid_x() >= 32 {
            while arrive && !mbarrier_try_wait_parity(bar, 0) {}
            assert!(!arrive || ld_shared::<u32>(slot(tid_x() - 32)) == tid_x() - 32);
            st_shared(slot(tid_x() - 32), 0u32); // caught
        }
        sync();
    };
    for order in orders(12) {
        run(&mut device, 4, 2, order, &|| kernel(true)).unwrap_or_else(|fault| panic!("{fault}"));
    }
    caught(&mut device, FaultKind::Race, &|| kernel(false));
}

#[test]
fn the_barrier_counts_those_who_have_not_ended() {
    let mut device = Device::new();
    // Of the second block, one warp ends at once, before or after the others have come.
    for order in orders(12) {
        let ran = run(&mut device, 4, 2, order, &|| {
            if cluster_ctarank() == 1 && tid_x() < 32 {
                return;
            }
            for _ in 0..3 {
                sync();
            }
        });
        ran.unwrap_or_else(|fault| panic!("{fault}"));
    }
    // Without clusters it is the block's own.
    run(&mut device, 4, 1, Order::Seeded(1), &sync).unwrap_or_else(|fault| panic!("{fault}"));
}

#[test]
fn misuse_of_the_barrier() {
    let mut device = Device::new();
    caught(&mut device, FaultKind::BarrierDivergence, &|| {
        sync();
        cluster_wait(); // caught
    });
    caught(&mut device, FaultKind::BarrierDivergence, &|| {
        cluster_arrive();
        cluster_arrive(); // caught
    });
    // A warp that waits elsewhere for ever.
    let fault = run(&mut device, 4, 2, Order::Deterministic, &|| {
        if cluster_ctarank() == 1 && tid_x() < 32 {
            bar_sync_named(1, THREADS);
        }
        sync();
    });
    assert_eq!(fault.expect_err("a deadlock").kind, FaultKind::Deadlock);
    // Lanes of a warp that don't come together.
    let fault = run(&mut device, 4, 2, Order::Deterministic, &|| {
        if tid_x() != 3 {
            sync();
        }
    });
    assert_eq!(fault.expect_err("divergence").kind, FaultKind::WarpDivergence);
}

#[test]
fn addresses_and_shapes_that_mean_nothing() {
    let mut device = Device::new();
    caught(&mut device, FaultKind::InvalidOperand, &|| {
        mapa(slot(0), 2); // caught
    });
    caught(&mut device, FaultKind::InvalidOperand, &|| {
        mapa(mapa(slot(0), 1), 1); // caught
    });
    // A mapped address is none of the block's own memory, nor of a rank that isn't there.
    caught(&mut device, FaultKind::OutOfBounds, &|| {
        st_shared(mapa(slot(0), next()), 1u32); // caught
    });
    caught(&mut device, FaultKind::OutOfBounds, &|| {
        st_shared_cluster(slot(0) | 3 << 24, 1u32); // caught
    });
    caught(&mut device, FaultKind::OutOfBounds, &|| {
        st_shared_cluster(mapa(slot(256), next()), 1u32); // caught
    });
    caught(&mut device, FaultKind::Uninitialised, &|| {
        st_shared(slot(tid_x()), 1u32);
        sync();
        ld_shared_cluster::<u32>(mapa(slot(THREADS + tid_x()), next())); // caught
    });
    let refused = |device: &mut Device, grid, threads, cluster| {
        let launch = Launch { name: "cluster", grid, threads, shared_bytes: 0, order: Order::Deterministic };
        let fault = device.launch_clusters(&launch, cluster, &|| ()).expect_err("no such launch");
        assert_eq!(fault.kind, FaultKind::InvalidLaunch, "{fault}");
    };
    for (grid, threads, cluster) in [
        ([3, 2, 1], 64, 2),
        ([4, 1, 1], 64, 0),
        ([34, 1, 1], 32, 17),
        ([4, 1, 1], 48, 2),
        ([11, 1, 1], 1024, 11),
    ] {
        refused(&mut device, grid, threads, cluster);
    }
}

#[test]
fn places_name_the_block() {
    let mut device = Device::new();
    let fault = run(&mut device, 4, 2, Order::Deterministic, &|| {
        if ctaid_x() == 3 && ctaid_y() == 1 && tid_x() == 33 {
            st_shared(slot(256), 1u32);
        }
    });
    let at = fault.expect_err("out of bounds").at.expect("a lane");
    assert_eq!((at.block, at.thread), ([3, 1, 0], 33));
}

/// Of a cluster's blocks the first waits until all others have counted themselves; they count once a copy has landed.
fn count_and_poll(input: u64, counter: u64, expected: u32) {
    let bar = slot(0);
    if tid_x() != 0 {
        return;
    }
    if cluster_ctarank() == 0 {
        while poll_acquire_gpu_u32(counter + u64::from(ctaid_y()) * 4) < expected {} // caught
        return;
    }
    mbarrier_init(bar, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(bar, 16);
    bulk_load(slot(4), input, 16, bar);
    while !mbarrier_try_wait_parity(bar, 0) {}
    atom_add_acq_rel_gpu_u32(counter + u64::from(ctaid_y()) * 4, ld_shared::<u32>(slot(4)));
}

#[test]
fn a_lane_that_polls_lets_others_and_their_copies_go_on() {
    let mut device = Device::new();
    let (input, counter) = (device.alloc(16, "input"), device.alloc(8, "counter"));
    device.write(input, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for order in orders(8) {
        device.write(counter, &[0; 8]);
        let ran = run(&mut device, 4, 4, order, &|| count_and_poll(input, counter, 3));
        ran.unwrap_or_else(|fault| panic!("{order:?}: {fault}"));
        assert_eq!(read(&mut device, counter, 2), [3, 3]);
    }
}

#[test]
fn a_poll_is_a_load() {
    let mut device = Device::new();
    device.count_requests(true);
    let counter = device.alloc(4, "counter");
    device.write(counter, &[0; 4]);
    let poll = || {
        if tid_x() == 0 {
            poll_acquire_gpu_u32(counter);
        }
    };
    let report =
        run(&mut device, 4, 2, Order::Deterministic, &poll).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!((report.global_load_requests, report.global_store_requests), (8, 0));
    assert_eq!(read(&mut device, counter, 1), [0]);
}

#[test]
fn a_poll_releases_nothing() {
    let mut device = Device::new();
    let (data, counter) = (device.alloc(4, "data"), device.alloc(4, "counter"));
    device.write(data, &[0; 4]);
    device.write(counter, &[0; 4]);
    let kernel = || {
        if tid_x() != 0 || ctaid_y() != 0 {
            return;
        }
        if ctaid_x() == 0 {
            st_global(data, 1u32);
            fence_acq_rel_gpu();
            poll_acquire_gpu_u32(counter);
        } else if ctaid_x() == 2 {
            poll_acquire_gpu_u32(counter);
            ld_global::<u32>(data);
        }
    };
    let fault = run(&mut device, 4, 2, Order::Deterministic, &kernel).expect_err("a race");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
}

#[test]
fn a_poll_for_what_nobody_writes_is_caught() {
    let mut device = Device::new();
    let (input, counter) = (device.alloc(16, "input"), device.alloc(8, "counter"));
    device.write(input, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.write(counter, &[0; 8]);
    let fault = caught(&mut device, FaultKind::Deadlock, &|| count_and_poll(input, counter, 1000));
    assert!(fault.to_string().contains("polls for a value"), "{fault}");
}

/// Block 0 sends four words, and block 2 waits for all of them; what is behind `data` goes along with a fence on either side.
fn send_and_poll(data: u64, mail: u64, fenced: bool) {
    if tid_x() != 0 || ctaid_y() != 0 {
        return;
    }
    let fence = || {
        if fenced {
            fence_acq_rel_gpu();
        }
    };
    if ctaid_x() == 0 {
        if data != 0 {
            st_global(data, 1u32);
        }
        fence();
        (0..4).for_each(|word| st_relaxed_gpu_u32(mail + word * 4, !(word as u32)));
    } else if ctaid_x() == 2 {
        let mut words = [0; 4];
        while words.contains(&0) {
            words = poll_relaxed_gpu_v4_u32(mail);
        }
        assert_eq!(words, [!0, !1, !2, !3]);
        fence();
        if data != 0 {
            assert_eq!(ld_global::<u32>(data), 1);
        }
    }
}

#[test]
fn polled_words_come_by_themselves() {
    let mut device = Device::new();
    let (data, mail) = (device.alloc(4, "data"), device.alloc(16, "mail"));
    device.write(data, &[0; 4]);
    for (order, fenced) in orders(8).flat_map(|order| [(order, false), (order, true)]) {
        device.write(mail, &[0; 16]);
        let data = if fenced { data } else { 0 };
        let ran = run(&mut device, 4, 4, order, &|| send_and_poll(data, mail, fenced));
        ran.unwrap_or_else(|fault| panic!("{order:?}: {fault}"));
    }
}

#[test]
fn a_polled_word_brings_nothing_else() {
    let mut device = Device::new();
    let (data, mail) = (device.alloc(4, "data"), device.alloc(16, "mail"));
    device.write(data, &[0; 4]);
    device.write(mail, &[0; 16]);
    let kernel = || send_and_poll(data, mail, false);
    let fault = run(&mut device, 4, 2, Order::Deterministic, &kernel).expect_err("a race");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
}
