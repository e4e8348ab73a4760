//! A kernel's buffers and launches, ready to be run any number of times.

use tilewright_host::{Error, Result, gpu::Driver};
use tilewright_kernels::abi::{KernelSpec, Params};

use crate::random::{Kind, Random};

/// Byte of poison: a NaN as bf16 and as f32, an impossible token or page as u32.
pub const POISON: u8 = 0xff;
/// Bytes that are made on the host and uploaded at a time.
const PIECE_BYTES: usize = 32 << 20;

/// What was put into a buffer.
#[derive(Debug, Clone, PartialEq)]
pub enum Contents {
    /// A function of the index.
    Random(Random),
    /// Ids, positions, lengths, tables.
    U32(Vec<u32>),
    /// Values that are not random: cosines and sines.
    F32(Vec<f32>),
    /// Poison, to be written by the kernel.
    Poison,
}

impl Contents {
    /// Element `index`; a NaN of what are no numbers.
    pub fn value(&self, index: usize) -> f32 {
        match self {
            Contents::Random(random) => random.value(index),
            Contents::F32(values) => values[index],
            Contents::U32(_) | Contents::Poison => f32::NAN,
        }
    }
}

struct Region<D: Driver> {
    name: &'static str,
    contents: Contents,
    buffer: D::Buffer,
    bytes: usize,
}

/// One launch.
#[derive(Debug, Clone)]
pub struct Step {
    /// The kernel.
    pub spec: &'static KernelSpec,
    /// Its grid.
    pub grid: [u32; 3],
    params: Vec<u8>,
}

/// Named buffers and the launches over them.
pub struct Prepared<'d, D: Driver> {
    driver: &'d D,
    regions: Vec<Region<D>>,
    steps: Vec<Step>,
}

impl<'d, D: Driver> Prepared<'d, D> {
    /// Nothing yet.
    pub fn new(driver: &'d D) -> Self {
        Prepared { driver, regions: Vec::new(), steps: Vec::new() }
    }

    /// The driver it was made on.
    pub fn driver(&self) -> &'d D {
        self.driver
    }

    /// `elems` random elements; their address.
    pub fn random(&mut self, name: &'static str, kind: Kind, elems: usize, seed: u64) -> Result<u64> {
        // Buffers of one seed must not be equal.
        let salt = name.bytes().fold(seed, |salt, byte| salt.wrapping_mul(257).wrapping_add(byte.into()));
        let random = Random { kind, seed: salt };
        let bytes = elems * kind.bytes();
        let (address, buffer) = self.allocate(name, bytes)?;
        let mut piece = vec![0; bytes.min(PIECE_BYTES)];
        for offset in (0..bytes).step_by(PIECE_BYTES) {
            let piece = &mut piece[..PIECE_BYTES.min(bytes - offset)];
            random.fill(offset / kind.bytes(), piece);
            self.driver.upload(&buffer, offset, piece)?;
        }
        self.regions.push(Region { name, contents: Contents::Random(random), buffer, bytes });
        Ok(address)
    }

    /// Integers; their address.
    pub fn u32s(&mut self, name: &'static str, values: Vec<u32>) -> Result<u64> {
        let bytes = bytemuck::cast_slice(&values).to_vec();
        self.exact(name, &bytes, Contents::U32(values))
    }

    /// Numbers; their address.
    pub fn f32s(&mut self, name: &'static str, values: Vec<f32>) -> Result<u64> {
        let bytes = bytemuck::cast_slice(&values).to_vec();
        self.exact(name, &bytes, Contents::F32(values))
    }

    /// `bytes` of poison for the kernel to overwrite; their address.
    pub fn output(&mut self, name: &'static str, bytes: usize) -> Result<u64> {
        let (address, buffer) = self.allocate(name, bytes)?;
        self.regions.push(Region { name, contents: Contents::Poison, buffer, bytes });
        self.poison(name)?;
        Ok(address)
    }

    fn exact(&mut self, name: &'static str, bytes: &[u8], contents: Contents) -> Result<u64> {
        let (address, buffer) = self.allocate(name, bytes.len())?;
        self.driver.upload(&buffer, 0, bytes)?;
        self.regions.push(Region { name, contents, buffer, bytes: bytes.len() });
        Ok(address)
    }

    fn allocate(&self, name: &'static str, bytes: usize) -> Result<(u64, D::Buffer)> {
        let buffer = self.driver.alloc(bytes.max(1), name)?;
        Ok((self.driver.address(&buffer), buffer))
    }

    /// Puts poison back into an output.
    pub fn poison(&self, name: &str) -> Result<()> {
        let region = self.region(name)?;
        let piece = vec![POISON; region.bytes.min(PIECE_BYTES)];
        for offset in (0..region.bytes).step_by(PIECE_BYTES) {
            self.driver.upload(&region.buffer, offset, &piece[..PIECE_BYTES.min(region.bytes - offset)])?;
        }
        Ok(())
    }

    /// Adds a launch.
    pub fn launch<P: Params>(&mut self, spec: &'static KernelSpec, grid: [u32; 3], params: &P) {
        self.steps.push(Step { spec, grid, params: bytemuck::bytes_of(params).to_vec() });
    }

    /// The launches, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Puts the launches on the stream.
    pub fn run(&self) -> Result<()> {
        for step in &self.steps {
            // SAFETY: the kernel's file in `kernels` sized every buffer by the problem whose numbers it put into the parameters;
            // the tests run the same launches under the emulator, which checks every access.
            unsafe { self.driver.launch(step.spec, step.grid, &step.params)? };
        }
        Ok(())
    }

    fn region(&self, name: &str) -> Result<&Region<D>> {
        let found = self.regions.iter().find(|region| region.name == name);
        found.ok_or_else(|| Error::Shape {
            op: "prepare",
            what: "buffers",
            expected: format!("one called '{name}'"),
            found: format!("{:?}", self.regions.iter().map(|region| region.name).collect::<Vec<_>>()),
        })
    }

    /// A buffer's elements as they were before the launches.
    pub fn elements(&self, name: &str) -> Result<&Contents> {
        Ok(&self.region(name)?.contents)
    }

    /// The integers of a buffer as they were before the launches; none for other contents.
    pub fn integers(&self, name: &str) -> Result<&[u32]> {
        Ok(match &self.region(name)?.contents {
            Contents::U32(values) => values,
            _ => &[],
        })
    }

    /// What a buffer holds now.
    pub fn bytes(&self, name: &str, offset: usize, bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.driver.download(&self.region(name)?.buffer, offset, &mut out)?;
        Ok(out)
    }

    /// A buffer of the driver.
    pub fn buffer(&self, name: &str) -> Result<&D::Buffer> {
        Ok(&self.region(name)?.buffer)
    }

    /// The buffers.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.regions.iter().map(|region| region.name)
    }

    /// The length of a buffer.
    pub fn len_bytes(&self, name: &str) -> Result<usize> {
        Ok(self.region(name)?.bytes)
    }

    /// Forgets the launches: for tests of the checks.
    #[doc(hidden)]
    pub fn drop_launches(&mut self) {
        self.steps.clear();
    }

    /// Uploads other random inputs than the checks are told of: for tests of the checks.
    #[doc(hidden)]
    pub fn shift_inputs(&mut self) -> Result<()> {
        for region in &self.regions {
            if let Contents::Random(random) = region.contents {
                let mut bytes = vec![0; region.bytes];
                random.fill(1, &mut bytes);
                self.driver.upload(&region.buffer, 0, &bytes)?;
            }
        }
        Ok(())
    }
}
