use super::*;
use crate::{Error, SampleRow};

fn logits(device: &CpuDevice, rows: usize, values: &[f32]) -> crate::cpu::CpuLogits {
    crate::cpu::CpuLogits(tensor(device, rows, values.len() / rows, values))
}

fn how(uniform: f32) -> SampleRow {
    SampleRow { temperature: 1.0, top_p: 1.0, min_p: 0.0, uniform, top_k: 0, reserved: 0 }
}

fn one(values: &[f32], how: SampleRow) -> u32 {
    let device = CpuDevice::new();
    device.sample(&logits(&device, 1, values), &[how]).unwrap()[0]
}

#[test]
fn the_lowest_index_wins_a_tie() {
    let device = CpuDevice::new();
    let values = [0.0, 3.0, 3.0, f32::NEG_INFINITY, -1.0, -1.0];
    assert_eq!(device.argmax(&logits(&device, 2, &values)).unwrap(), [1, 1]);
}

#[test]
fn rows_without_a_choice_are_named() {
    let device = CpuDevice::new();
    for bad in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
        let values = logits(&device, 3, &[1.0, 2.0, 0.5, 0.0, bad, bad]);
        assert!(matches!(device.argmax(&values), Err(Error::InvalidLogits { row: 2 })));
        assert!(matches!(device.sample(&values, &[how(0.5); 3]), Err(Error::InvalidLogits { row: 2 })));
    }
    let values = logits(&device, 1, &[1.0, f32::NAN]);
    assert!(matches!(device.argmax(&values), Err(Error::InvalidLogits { row: 0 })));
    assert!(matches!(device.sample(&values, &[]), Err(Error::Shape { op: "sample", .. })));
}

#[test]
fn draws_follow_the_probabilities_in_order_of_index() {
    // Probabilities 0.5, 0.125, 0.25, 0.125.
    let values = [4f32.ln(), 0.0, 2f32.ln(), 0.0];
    for (uniform, token) in
        [(0.0, 0), (0.49, 0), (0.51, 1), (0.62, 1), (0.63, 2), (0.87, 2), (0.88, 3), (0.999_999_94, 3)]
    {
        assert_eq!(one(&values, how(uniform)), token, "{uniform}");
    }
    // At half the temperature: 16, 1, 4, 1 of 22.
    let cold = SampleRow { temperature: 0.5, ..how(15.9 / 22.0) };
    assert_eq!((one(&values, cold), one(&values, SampleRow { uniform: 16.1 / 22.0, ..cold })), (0, 1));
}

#[test]
fn filters_keep_what_they_should() {
    let values = [4f32.ln(), 0.0, 2f32.ln(), 0.0];
    let kept = |how: SampleRow| {
        let mut seen: Vec<u32> =
            (0..200).map(|i| one(&values, SampleRow { uniform: i as f32 / 200.0, ..how })).collect();
        seen.dedup();
        seen
    };
    assert_eq!(kept(SampleRow { top_k: 1, ..how(0.0) }), [0]);
    assert_eq!(kept(SampleRow { top_k: 2, ..how(0.0) }), [0, 2]);
    // Among equals the lower index ranks first.
    assert_eq!(kept(SampleRow { top_k: 3, ..how(0.0) }), [0, 1, 2]);
    assert_eq!(kept(SampleRow { top_p: 0.4, ..how(0.0) }), [0]);
    assert_eq!(kept(SampleRow { top_p: 0.6, ..how(0.0) }), [0, 2]);
    assert_eq!(kept(SampleRow { top_p: 0.8, ..how(0.0) }), [0, 1, 2]);
    // Renormalised after the first filter: of 2/3 and 1/3 the first alone reaches 0.6.
    assert_eq!(kept(SampleRow { top_k: 2, top_p: 0.6, ..how(0.0) }), [0]);
    assert_eq!(kept(SampleRow { min_p: 0.4, ..how(0.0) }), [0, 2]);
    assert_eq!(kept(SampleRow { min_p: 1.0, ..how(0.0) }), [0]);
    assert_eq!(kept(SampleRow { top_k: 99, ..how(0.0) }), [0, 1, 2, 3]);
}
