//! Tiles dealt to warps in turn, in a ring whose stages no warp has for itself: a phase's parity is known once the one before is over.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order};

const STAGES: u32 = 3;
const TILES: u32 = 12;
const TILE_BYTES: u32 = 128;
const CONSUMERS: u32 = 2;

/// Warps 0 and 1 have every other tile, warp 2 brings them; consumers look after the tile before theirs in the stage if they are `careful`.
fn kernel(tiles: u64, out: u64, careful: bool) {
    let (full, empty, s_tiles) = (shared_base(), shared_base() + 64, shared_base() + 128);
    let (warp, lane) = (tid_x() / 32, tid_x() % 32);
    let wait = |bar: u32, parity: u32| while !mbarrier_try_wait_parity(bar, parity) {};
    if tid_x() == 0 {
        for stage in 0..STAGES {
            mbarrier_init(full + 8 * stage, 1);
            mbarrier_init(empty + 8 * stage, 1);
        }
        fence_mbarrier_init();
    }
    bar_sync();
    for tile in 0..TILES {
        let (stage, parity) = (tile % STAGES, tile / STAGES % 2);
        let (full, empty, s_tile) = (full + 8 * stage, empty + 8 * stage, s_tiles + TILE_BYTES * stage);
        if warp == CONSUMERS && lane == 0 {
            wait(empty, parity ^ 1);
            mbarrier_arrive_expect_tx(full, TILE_BYTES);
            bulk_load(s_tile, tiles + u64::from(tile * TILE_BYTES), TILE_BYTES, full);
        }
        if warp == tile % CONSUMERS {
            if careful {
                wait(empty, parity ^ 1);
            }
            wait(full, parity);
            let value = ld_shared::<u32>(s_tile + 4 * lane);
            st_global(out + u64::from(tile * TILE_BYTES + 4 * lane), value);
            bar_warp_sync();
            if lane == 0 {
                mbarrier_arrive(empty);
            }
        }
    }
}

fn run(careful: bool, order: Order) -> Result<bool, Fault> {
    let mut device = Device::new();
    let bytes: Vec<u8> = (0..TILES * TILE_BYTES).map(|i| (i * 31 % 251) as u8).collect();
    let (tiles, out) = (device.alloc(bytes.len(), "tiles"), device.alloc(bytes.len(), "out"));
    device.write(tiles, &bytes);
    let threads = 32 * (CONSUMERS + 1);
    let launch =
        Launch { name: "dealt", grid: [1; 3], threads, shared_bytes: 128 + STAGES * TILE_BYTES, order };
    device.launch(&launch, &|| kernel(tiles, out, careful))?;
    let mut got = vec![0; bytes.len()];
    device.read(out, &mut got)?;
    Ok(got == bytes)
}

#[test]
fn a_parity_that_means_the_phase_before_last_is_found() {
    for order in std::iter::once(Order::Deterministic).chain((0..50).map(Order::Seeded)) {
        assert_eq!(run(true, order), Ok(true));
    }
    let fault = run(false, Order::Deterministic).expect_err("the newest tile landed first");
    assert_eq!(fault.kind, FaultKind::InFlight, "{fault}");
}
