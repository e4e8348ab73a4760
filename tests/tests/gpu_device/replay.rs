//! Steps that are replayed: what they compute, and when they must not be.

use std::sync::Arc;

use tilewright::Model;
use tilewright_host::{
    ActivationBits, Batch, CodeBits, DType, Device, Error, HostQuantized, Outputs, Pace, QuantizedPart,
    QuantizedSpec, Result, RowClass, gpu::GpuDevice,
};
use tilewright_tests::emulated::Emulated;

use super::{
    engine::{CONFIG, answers, fixture, requests},
    setup::{Numbers, bits, hopper, matrix, tensor_of},
};

#[test]
fn answers_are_those_of_launches_one_by_one() {
    let devices = [Emulated::default(), Emulated::default(), Emulated::default().without_graphs()]
        .map(|it| Arc::new(GpuDevice::new(it)));
    devices[1].append_apart(true);
    let said = devices.clone().map(|device| {
        let model = Model::load_on(fixture(), device).expect("the fixture loads");
        // Ragged, and alone: shapes come and go.
        let together = answers(&model, CONFIG, &requests()).0;
        (together, answers(&model, CONFIG, &requests()[2..3]).0)
    });
    assert!(said.iter().all(|answers| *answers == said[0]));
    let [replayed, apart, singly] = devices.each_ref().map(|device| device.driver().take_replayed());
    assert!(replayed.len() > 8, "{replayed:?}");
    // Of two layers, each with its append in attention; all but the choice of tokens.
    assert!(replayed.iter().all(|&launches| launches == replayed[0] && launches > 16), "{replayed:?}");
    assert!(apart.iter().all(|&launches| launches == replayed[0] + 2), "{apart:?}");
    assert!(singly.is_empty());
    let appending = [&devices[0], &devices[1]].map(|device| {
        let launched = device.driver().take_launched();
        launched.iter().filter(|launch| launch.kernel == "attention_decode_append_hd64").count()
    });
    assert_eq!(appending, [2 * replayed.len(), 0]);
}

#[test]
fn first_steps_of_a_size_are_no_measure_of_later_ones() {
    let device = hopper();
    let work = Work::new(&device);
    let mut out = device.tensor(4, COLS).expect("a tensor");
    let mut replays = Default::default();
    let mut pace = |rows: usize, class| {
        let mut batch = Batch::default();
        for _ in 0..rows {
            match class {
                RowClass::Generated => batch.push_generated(&[1], 3, &[0], 8, Outputs::None),
                RowClass::Prompt => batch.push(&[1], 3, &[0], 8, Outputs::None),
            }
        }
        let ran = device.run_step(&batch, &mut replays, |step| device.embed(&work.table, step, &mut out));
        Result::<Pace>::expect(ran, "a step")
    };
    use Pace::{First, Steady};
    assert_eq!([(); 4].map(|()| pace(2, RowClass::Generated)), [First, First, Steady, Steady]);
    assert_eq!([(); 3].map(|()| pace(3, RowClass::Generated)), [First, First, Steady]);
    assert_eq!(pace(2, RowClass::Generated), Steady);
    // Prompts are launched one by one for good.
    assert_eq!([(); 2].map(|()| pace(2, RowClass::Prompt)), [Steady; 2]);
}

/// A table of 16 rows and a product whose columns are split, over generated tokens.
struct Work {
    table: <GpuDevice<Emulated> as Device>::Matrix,
    weights: <GpuDevice<Emulated> as Device>::Matrix,
    embedded: <GpuDevice<Emulated> as Device>::Tensor,
    out: <GpuDevice<Emulated> as Device>::Tensor,
}

const COLS: usize = 1024;
/// Rows of a step, at most: more than a block has room for, so that splits of columns meet in scratch.
const ROWS: usize = 9;

impl Work {
    fn new(device: &GpuDevice<Emulated>) -> Work {
        Work {
            table: matrix(device, &Numbers::new(1).take(16 * COLS, 1.0), COLS),
            weights: matrix(device, &Numbers::new(2).take(64 * COLS, 1.0), COLS),
            embedded: device.tensor(ROWS, COLS).expect("a tensor"),
            out: device.tensor(ROWS, 64).expect("a tensor"),
        }
    }

    fn run(
        &mut self,
        device: &GpuDevice<Emulated>,
        ids: &[u32],
        replays: &mut <GpuDevice<Emulated> as Device>::Replays,
    ) -> Result<Vec<u32>> {
        let mut batch = Batch::default();
        for &id in ids {
            batch.push_generated(&[id], 3, &[0], 8, Outputs::None);
        }
        device.run_step(&batch, replays, |step| -> Result<()> {
            device.embed(&self.table, step, &mut self.embedded)?;
            device.linear(&self.embedded, &self.weights, None, &mut self.out)
        })?;
        Ok(bits(&device.read(&self.out)?))
    }
}

#[test]
fn ids_that_are_not_there_are_refused_by_a_replayed_step_too() {
    let device = hopper();
    let mut work = Work::new(&device);
    let mut replays = Default::default();
    let first = work.run(&device, &[3, 15], &mut replays).expect("launched");
    let second = work.run(&device, &[15, 3], &mut replays).expect("recorded");
    assert_eq!([&first[64..], &first[..64]].concat(), second);
    assert_eq!(work.run(&device, &[3, 15], &mut replays).expect("replayed"), first);
    assert_eq!(device.driver().take_replayed().len(), 2);
    let refused = work.run(&device, &[3, 16], &mut replays);
    assert!(matches!(&refused, Err(Error::Shape { what: "token ids", .. })), "{refused:?}");
    assert!(device.driver().take_replayed().is_empty());
    assert_eq!(work.run(&device, &[3, 15], &mut replays).expect("replayed"), first);
    assert_eq!(device.driver().take_replayed().len(), 1);
}

#[test]
fn a_record_is_made_anew_when_scratch_has_moved() {
    let device = hopper();
    let mut work = Work::new(&device);
    let mut replays = Default::default();
    let ids = [1; ROWS];
    let first = work.run(&device, &ids, &mut replays).expect("launched");
    for _ in 0..2 {
        assert_eq!(work.run(&device, &ids, &mut replays).expect("replayed"), first);
    }
    // More rows than any step had, of more columns: their splits take more scratch, which frees what the record names.
    let x = tensor_of(&device, &Numbers::new(5).take(40 * COLS, 1.0), COLS, 40);
    let wide = matrix(&device, &Numbers::new(6).take(512 * COLS, 1.0), COLS);
    let mut out = device.tensor(40, 512).expect("a tensor");
    device.linear(&x, &wide, None, &mut out).expect("a product");
    // Freed memory would be a fault of the emulator's.
    assert_eq!(work.run(&device, &ids, &mut replays).expect("recorded anew"), first);
    assert_eq!(work.run(&device, &ids, &mut replays).expect("replayed"), first);
    let launched = device.driver().take_launched();
    // The steps' own, and that of more rows.
    for kernel in ["gemm_few_bf16_16", "gemm_few_bf16_64"] {
        assert!(launched.iter().any(|launch| launch.kernel == kernel && launch.grid[0] > 1), "{kernel}");
    }
}

#[test]
fn products_bring_the_weights_of_the_next_and_nothing_else_changes() {
    let device = hopper();
    let quantized = |seed: usize| {
        let part = QuantizedPart::new(QuantizedSpec {
            rows: 512,
            cols: 512,
            bits: CodeBits::Four,
            group: 128,
            codes: (0..512 * 512).map(|i| ((i * 7 + i / 512 * 3 + seed) % 16) as u8).collect(),
            scales: (0..512 * 4).map(|i| 0.01 + (i % 5) as f32 / 256.0).collect(),
            scale_type: DType::F16,
            zeros: vec![8; 512 * 4],
            permutation: None,
            pre_scale: None,
            activations: ActivationBits::Full,
        });
        let weights = HostQuantized::new(vec![part.expect("a part")]).expect("parts that stack");
        device.quantized(&weights).expect("a matrix")
    };
    let (first, second) = (quantized(0), quantized(5));
    let table = matrix(&device, &Numbers::new(1).take(16 * 512, 1.0), 512);
    let mut tensors = [(); 3].map(|()| device.tensor(2, 512).expect("a tensor"));
    let mut replays = Default::default();
    let mut run = |ids: [u32; 2]| -> Vec<u32> {
        let mut batch = Batch::default();
        for id in ids {
            batch.push_generated(&[id], 3, &[0], 8, Outputs::None);
        }
        let [embedded, between, out] = &mut tensors;
        let work = device.run_step(&batch, &mut replays, |step| -> Result<()> {
            device.embed(&table, step, embedded)?;
            device.linear(embedded, &first, None, between)?;
            device.linear(between, &second, None, out)
        });
        work.expect("a step");
        bits(&device.read(out).expect("activations"))
    };
    let launched = run([3, 9]);
    let brought = || -> Vec<u64> {
        let launches = device.driver().take_launched();
        let products = launches.iter().filter(|launch| launch.kernel.starts_with("gemm_few_int4"));
        products.map(|launch| launch.report.prefetched_bytes).collect()
    };
    assert_eq!(brought(), [0, 0]);
    assert_eq!(run([3, 9]), launched);
    // All tiles of the second, by the first: two of rows by four of columns, of nibbles and scales.
    assert_eq!(brought(), [8 * (256 * 64 + 512), 0]);
}
