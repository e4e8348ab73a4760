//! Lane-steps a second of the emulator, by kind of work, in time the thread ran: `cargo run --release -p tilewright-simt --example speed`.

use std::time::Instant;

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Launch, Order};

/// Nanoseconds this thread has run; on machines that don't say, the time of day.
fn now(since: Instant) -> f64 {
    let run = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = run.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| since.elapsed().as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
}

fn measure(device: &mut Device, name: &str, threads: u32, kernel: &dyn Fn()) {
    let launch =
        Launch { name, grid: [64, 1, 1], threads, shared_bytes: 32 << 10, order: Order::Deterministic };
    let mut best = 0f64;
    let mut steps = 0;
    let begin = Instant::now();
    for _ in 0..5 {
        let start = now(begin);
        steps = device.launch(&launch, kernel).unwrap_or_else(|fault| panic!("{fault}")).lane_steps;
        best = best.max(steps as f64 / (now(begin) - start));
    }
    println!(
        "{name:32} {:8.2} M lane-steps/s ({steps} steps, {:.1} ms)",
        best / 1e6,
        steps as f64 / best * 1e3
    );
}

fn keep<T>(value: T) {
    std::hint::black_box(value);
}

fn main() {
    let mut device = Device::new();
    let x = device.alloc(16 << 20, "x");
    device.write(x, &vec![0; 16 << 20]);
    let out = device.alloc(16 << 20, "out");
    let at = |i: u32, bytes: u32| u64::from((i * 256 + tid_x() + 8192 * ctaid_x()) * bytes);
    for races in [true, false] {
        device.check_races(races);
        println!("races checked: {races}");
        measure(&mut device, "global load 16", 256, &|| {
            (0..32).for_each(|i| keep(ld_global::<[u32; 4]>(x + at(i, 16))))
        });
        measure(&mut device, "global load 2, store 2", 256, &|| {
            (0..32).for_each(|i| st_global(out + at(i, 2), ld_global::<u16>(x + at(i, 2))));
        });
        measure(&mut device, "shared store 16, load 16", 256, &|| {
            let slot = shared_base() + 16 * tid_x();
            (0..64).for_each(|i| {
                st_shared(slot + 4096 * (i % 8), [i; 4]);
                ld_shared::<[u32; 4]>(slot + 4096 * (i % 8));
            });
        });
        measure(&mut device, "shuffle", 256, &|| (0..64).for_each(|i| keep(shfl_bfly(i, 1))));
        measure(&mut device, "block barrier", 256, &|| (0..16).for_each(|_| bar_sync()));
        measure(&mut device, "mma", 256, &|| {
            (0..32).for_each(|i| keep(mma_m16n8k16_bf16([i; 4], [i; 2], [0.0; 4])))
        });
        measure(&mut device, "wgmma m64n128k16", 128, &|| {
            let slot = |i: u32| shared_base() + 16 * (tid_x() + 128 * i);
            (0..12).for_each(|i| st_shared(slot(i), [0u32; 4]));
            fence_proxy_async();
            bar_sync();
            // K-major, 128-byte swizzle, groups of 8 rows 1024 bytes apart.
            let desc = |offset: u32| u64::from((shared_base() + offset) >> 4) | 64 << 32 | 1 << 62;
            let mut d = [0f32; 64];
            wgmma_fence();
            for _ in 0..4 {
                (0..4).for_each(|k| {
                    wgmma_ss(
                        WgmmaType::Bf16,
                        128,
                        &mut d,
                        desc(32 * k),
                        desc(8192 + 32 * k),
                        true,
                        false,
                        false,
                    );
                });
            }
            wgmma_commit();
            wgmma_wait(0, &mut d);
            keep(d);
        });
        measure(&mut device, "tile: copy, ldmatrix, mma", 128, &|| {
            let row = shared_base() + 16 * tid_x();
            let mut acc = [[0f32; 4]; 8];
            for i in 0..16 {
                for part in 0..4 {
                    cp_async_16(row + 2048 * part, x + at(4 * i + part, 16), 16);
                }
                cp_async_commit();
                cp_async_wait(0);
                bar_sync();
                for k in 0..4 {
                    let a = ldmatrix_x4(shared_base() + 2048 * k + 16 * (tid_x() % 32));
                    let b = ldmatrix_x4_trans(shared_base() + 2048 * k + 512 + 16 * (tid_x() % 32));
                    acc.iter_mut().for_each(|c| *c = mma_m16n8k16_bf16(a, [b[0], b[1]], *c));
                }
                bar_sync();
            }
        });
    }
}
