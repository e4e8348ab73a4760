//! What a first run takes.

use tilewright_host::Device;

use super::ways::Way;
use crate::Result;

/// A way that has run once.
pub(super) struct Begun<W: Way> {
    pub way: W,
    pub scratch: W::Scratch,
    pub out: W::Out,
    /// That memory grew by at the peak of the run: the device's where it counts them, or else the process's where the system does.
    pub bytes: Option<usize>,
}

impl<W: Way> Begun<W> {
    pub fn run(&mut self) -> Result<()> {
        self.way.run(&mut self.scratch, &mut self.out)
    }

    pub fn read(&self) -> Result<Vec<f32>> {
        self.way.read(&self.out)
    }
}

/// Runs once.
pub(super) fn begin<W: Way>(device: &impl Device, way: W) -> Result<Begun<W>> {
    let out = way.out()?;
    let run = move || -> Result<Begun<W>> {
        let mut begun = Begun { scratch: way.scratch()?, way, out, bytes: None };
        begun.run()?;
        Ok(begun)
    };
    let Some(before) = device.memory()? else {
        let (begun, bytes) = peak(|| fresh_pool(run));
        return Ok(Begun { bytes, ..begun? });
    };
    let begun = run()?;
    let after = device.memory()?;
    Ok(Begun { bytes: after.map(|after| after.most.saturating_sub(before.now)), ..begun })
}

/// In threads of their own, so that working memory that threads keep counts.
fn fresh_pool<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().build() {
        Ok(pool) => pool.install(run),
        // No more threads to be had: those there are.
        Err(_) => run(),
    }
}

/// What `run` gives, and the bytes that resident memory grew by at its peak, where the system tells.
fn peak<T>(run: impl FnOnce() -> T) -> (T, Option<usize>) {
    let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = resident("VmRSS:");
    let result = run();
    let after = resident("VmHWM:");
    let grown = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    (result, grown.filter(|_| reset))
}

fn resident(field: &str) -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}
