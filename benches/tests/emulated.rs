//! What is timed is checked: the very launches, under the emulator, by the checks that stand before every timing.

use std::collections::HashSet;

use tilewright_benches::{
    Error, cells,
    check::{Extent, check, check_small},
    kernels::{self, Kernel},
    prepared::Prepared,
    problem::{Decode, Gemm, GemmWeights, KvFormat, Problem},
};
use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_tests::emulated::Emulated;

#[test]
fn every_kernel_passes_its_check_on_every_kind_of_cell() {
    let driver = Emulated::default();
    let mut checked = HashSet::new();
    for kernel in kernels::all::<Emulated>() {
        for cell in cells::all() {
            let small = cell.problem.small();
            if kernel.takes(&cell.problem, driver.info()) && checked.insert((kernel.name(), small)) {
                check_small(kernel.as_ref(), &driver, &cell.problem).expect("a kernel of this project");
            }
        }
    }
    for stem in ["attention_prefill", "attention_decode", "rope_append", "gemm_bf16", "rms_norm", "silu_mul"]
    {
        assert!(checked.iter().any(|(name, _)| *name == stem), "{stem} solves no cell");
    }
}

#[test]
fn products_of_4_bit_weights_pass_their_checks_in_both_formats() {
    let driver = Emulated::default().hopper();
    let kernels = kernels::all::<Emulated>();
    for weights in [GemmWeights::Int4, GemmWeights::Int4F16] {
        for (name, m) in [("gemm_few", 1), ("gemm_few", 75), ("gemm_sm90", 75)] {
            let problem = Problem::Gemm(Gemm { weights, m, n: 4096, k: 4096 });
            let kernel = kernels.iter().find(|kernel| kernel.name() == name).expect("a product");
            assert!(kernel.takes(&problem, driver.info()), "{problem:?}");
            check_small(kernel.as_ref(), &driver, &problem).expect("a kernel of this project");
        }
    }
}

/// The kernel of a problem, its launches spoilt by `spoil`.
struct Spoilt {
    kernel: Box<dyn Kernel<Emulated>>,
    spoil: Spoil,
}

#[derive(Clone, Copy, PartialEq)]
enum Spoil {
    /// Nothing is launched: outputs stay poison.
    NoLaunch,
    /// Another problem is launched: outputs are finite and wrong.
    OtherInputs,
}

impl Kernel<Emulated> for Spoilt {
    fn name(&self) -> &'static str {
        "spoilt"
    }

    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool {
        self.kernel.takes(problem, info)
    }

    fn prepare<'d>(
        &self,
        driver: &'d Emulated,
        problem: &Problem,
        seed: u64,
    ) -> Result<Prepared<'d, Emulated>> {
        let mut prepared = self.kernel.prepare(driver, problem, seed)?;
        match self.spoil {
            Spoil::NoLaunch => prepared.drop_launches(),
            Spoil::OtherInputs => prepared.shift_inputs()?,
        }
        Ok(prepared)
    }
}

#[test]
fn a_kernel_that_is_wrong_is_refused() {
    let driver = Emulated::default();
    for spoil in [Spoil::NoLaunch, Spoil::OtherInputs] {
        let mut refused = HashSet::new();
        for kernel in kernels::all::<Emulated>() {
            let spoilt = Spoilt { kernel, spoil };
            let name = spoilt.kernel.name();
            for cell in cells::all() {
                if !spoilt.takes(&cell.problem, driver.info())
                    || !refused.insert((name, cell.problem.small()))
                {
                    continue;
                }
                match check_small(&spoilt, &driver, &cell.problem) {
                    Err(Error::Wrong { kernel: "spoilt", .. }) => {}
                    other => panic!("{name} was not refused for {}: {other:?}", cell.key),
                }
            }
        }
        assert!(refused.len() > 10, "{refused:?}");
    }
}

#[test]
fn a_few_rows_of_a_larger_output_are_enough_to_catch_a_fault() {
    let driver = Emulated::default();
    let problem = Problem::Gemm(Gemm { weights: GemmWeights::Bf16, m: 70, n: 72, k: 64 });
    let kernels = kernels::all::<Emulated>();
    let kernel = kernels.iter().find(|kernel| kernel.takes(&problem, driver.info())).expect("a product");
    let mut prepared = kernel.prepare(&driver, &problem, 3).expect("memory");
    prepared.run().expect("a launch");
    check("gemm_bf16", &prepared, &problem, Extent::Sampled).expect("a right product");
    prepared.shift_inputs().expect("memory");
    prepared.run().expect("a launch");
    let error =
        check("gemm_bf16", &prepared, &problem, Extent::Sampled).expect_err("a wrong product").to_string();
    assert!(
        error.starts_with("gemm_bf16 is wrong and was not timed, at Gemm(") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn trials_are_right_where_rules_differ() {
    let driver = Emulated::default();
    let trials = kernels::trials::<Emulated>();
    let (q_heads, kv_heads, head_dim, page_size) = (2, 1, 64, 16);
    for kv in [KvFormat::Bf16, KvFormat::Int8] {
        let problem =
            Problem::Decode(Decode { seqs: 1, context: 1700, q_heads, kv_heads, head_dim, page_size, kv });
        let mut grids = HashSet::new();
        for trial in trials.iter().filter(|trial| trial.takes(&problem, driver.info())) {
            let prepared = trial.prepare(&driver, &problem, 5).expect("memory");
            prepared.run().expect("a launch");
            check(trial.name(), &prepared, &problem, Extent::All).expect("a right output");
            grids.insert(prepared.steps()[0].grid);
            let named = kernels::select::<Emulated>(&[trial.name().into()]);
            assert_eq!(named.map(|found| found.len()).ok(), Some(1), "{}", trial.name());
        }
        assert!(grids.len() > 1, "the rules cut alike");
    }
}

#[test]
fn an_unknown_kernel_is_refused_by_name() {
    let Err(error) = kernels::select::<Emulated>(&["gemm_bf17".into()]) else { panic!("there is none") };
    let text = error.to_string();
    assert!(
        text.starts_with("no kernel 'gemm_bf17'; there are attention_prefill, ") && !text.contains('\n'),
        "{text}"
    );
    assert_eq!(kernels::select::<Emulated>(&["gemm_bf16".into()]).map(|found| found.len()).ok(), Some(1));
}
