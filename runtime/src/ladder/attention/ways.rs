//! Both ways to compute attention, of the same numbers.

use tilewright_host::{
    AttentionSpec, Batch, CacheSpec, DType, Device, HostMatrix, KvDType, Outputs, RopeAppend,
};

use super::AttentionShape;
use crate::Result;

const PAGE: usize = 16;

/// A way to compute attention of operands that are there.
pub(super) trait Way: Send {
    /// Outputs.
    type Out: Send;
    /// What a run writes beside.
    type Scratch: Send;
    /// Written once, so that their memory is there before a run.
    fn out(&self) -> Result<Self::Out>;
    fn scratch(&self) -> Result<Self::Scratch>;
    fn run(&self, scratch: &mut Self::Scratch, out: &mut Self::Out) -> Result<()>;
    /// `[tokens, q_heads * head_dim]`.
    fn read(&self, out: &Self::Out) -> Result<Vec<f32>>;
}

/// Zeros.
fn zeros<D: Device>(device: &D, rows: usize, cols: usize) -> Result<D::Tensor> {
    let mut tensor = device.tensor(rows, cols)?;
    device.write(&vec![0.0; rows * cols], &mut tensor)?;
    Ok(tensor)
}

/// The device's attention, on keys and values in its cache.
pub(super) struct Tiled<'d, D: Device> {
    device: &'d D,
    shape: AttentionShape,
    q: D::Tensor,
    cache: D::Cache,
    step: D::Step,
}

impl<'d, D: Device> Tiled<'d, D> {
    /// With what queries and cache were made of, `[tokens, (q_heads + 2 * kv_heads) * head_dim]`: such numbers that a row's
    /// weights lie orders of magnitude apart.
    pub fn new(device: &'d D, shape: AttentionShape) -> Result<(Self, Vec<f32>)> {
        let AttentionShape { tokens, q_heads, kv_heads, head_dim } = shape;
        let cols = (q_heads + 2 * kv_heads) * head_dim;
        let mut state = 1_u32;
        let mut numbers = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            4.0 * (state as f32 / u32::MAX as f32 - 0.5)
        };
        let table = matrix(device, tokens, cols, |_, _| numbers())?;
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let pages: Vec<u32> = (0..tokens.div_ceil(PAGE) as u32).collect();
        let mut batch = Batch::default();
        batch.push(&ids, 0, &pages, PAGE as u32, Outputs::None);
        let step = device.step(&batch)?;
        let mut fused = device.tensor(tokens, cols)?;
        device.embed(&table, &step, &mut fused)?;
        let (pages, dtype) = (pages.len(), KvDType::Native);
        let spec = CacheSpec { layers: 1, pages, page_size: PAGE, kv_heads, head_dim, dtype };
        let mut cache = device.cache(spec)?;
        let mut q = device.tensor(tokens, q_heads * head_dim)?;
        // Angles of 0 leave queries and keys as they are.
        let rope = device.rope(&vec![0.0; head_dim / 2], 1.0, tokens)?;
        let append = RopeAppend { qkv: &fused, qk_norm: None, rope: &rope, q_heads, layer: 0 };
        device.rope_append(append, &step, &mut cache, &mut q)?;
        let qkv = device.read(&fused)?;
        Ok((Tiled { device, shape, q, cache, step }, qkv))
    }

    /// Bytes of an element, as the device's cache has them.
    pub fn element_bytes(&self) -> usize {
        let AttentionShape { tokens, kv_heads, head_dim, .. } = self.shape;
        self.device.cache_bytes(&self.cache) / (2 * tokens.next_multiple_of(PAGE) * kv_heads * head_dim)
    }
}

impl<D: Device> Way for Tiled<'_, D> {
    type Out = D::Tensor;
    type Scratch = ();

    fn out(&self) -> Result<D::Tensor> {
        zeros(self.device, self.shape.tokens, self.shape.q_heads * self.shape.head_dim)
    }

    fn scratch(&self) -> Result<()> {
        Ok(())
    }

    fn run(&self, _: &mut (), out: &mut D::Tensor) -> Result<()> {
        let (q_heads, scale) = (self.shape.q_heads, self.shape.scale());
        let spec = AttentionSpec { q_heads, scale, causal: true, window: None, softcap: None };
        Ok(self.device.attention(&self.q, &self.cache, 0, &self.step, &spec, out)?)
    }

    fn read(&self, out: &D::Tensor) -> Result<Vec<f32>> {
        Ok(self.device.read(out)?)
    }
}

/// A matrix of the device, by its elements.
fn matrix<D: Device>(
    device: &D,
    rows: usize,
    cols: usize,
    mut element: impl FnMut(usize, usize) -> f32,
) -> Result<D::Matrix> {
    let elements = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
    let bytes: Vec<u8> = elements.flat_map(|(row, col)| element(row, col).to_le_bytes()).collect();
    Ok(device.matrix(&HostMatrix { parts: vec![(rows, &bytes)], cols, dtype: DType::F32 })?)
}

/// The textbook's way, as frameworks without fused attention go it: all scores, their softmax, the sums of values.
pub(super) struct Standard<'d, D: Device> {
    device: &'d D,
    shape: AttentionShape,
    groups: Vec<Group<D>>,
}

/// A key head and the query heads that share it, whose rows stand on end.
struct Group<D: Device> {
    /// `[group * tokens, head_dim]`.
    q: D::Tensor,
    /// `[tokens, head_dim]`.
    k: D::Matrix,
    /// `[head_dim, tokens]`: the order of a product's second operand, which a library's products would leave open.
    v: D::Matrix,
}

impl<'d, D: Device> Standard<'d, D> {
    pub fn new(device: &'d D, shape: AttentionShape, qkv: &[f32]) -> Result<Self> {
        let AttentionShape { tokens, q_heads, kv_heads, head_dim } = shape;
        let of_head = |token: usize, head: usize| {
            &qkv[(token * (q_heads + 2 * kv_heads) + head) * head_dim..][..head_dim]
        };
        let groups = (0..kv_heads).map(|kv_head| {
            let heads = kv_head * shape.group()..(kv_head + 1) * shape.group();
            let queries = heads.flat_map(|head| (0..tokens).flat_map(move |token| of_head(token, head)));
            let mut q = device.tensor(shape.group() * tokens, head_dim)?;
            device.write(&queries.copied().collect::<Vec<_>>(), &mut q)?;
            let (k_head, v_head) = (q_heads + kv_head, q_heads + kv_heads + kv_head);
            let k = matrix(device, tokens, head_dim, |token, i| of_head(token, k_head)[i])?;
            let v = matrix(device, head_dim, tokens, |i, token| of_head(token, v_head)[i])?;
            Ok(Group { q, k, v })
        });
        Ok(Standard { device, shape, groups: groups.collect::<Result<_>>()? })
    }
}

/// Its passes over all heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Scores,
    Softmax,
    Values,
}

impl Pass {
    pub const ALL: [Pass; 3] = [Pass::Scores, Pass::Softmax, Pass::Values];
}

impl<D: Device> Standard<'_, D> {
    pub fn pass(&self, pass: Pass, scores: &mut [D::Tensor], outs: &mut [D::Tensor]) -> Result<()> {
        for ((group, scores), out) in self.groups.iter().zip(scores).zip(outs) {
            match pass {
                Pass::Scores => self.device.linear(&group.q, &group.k, None, scores)?,
                Pass::Softmax => self.device.causal_softmax(self.shape.scale(), scores)?,
                Pass::Values => self.device.linear(scores, &group.v, None, out)?,
            }
        }
        Ok(())
    }

    /// For each group `make`, given the rows of its query heads.
    fn of_groups(&self, make: impl Fn(usize) -> Result<D::Tensor>) -> Result<Vec<D::Tensor>> {
        self.groups.iter().map(|_| make(self.shape.group() * self.shape.tokens)).collect()
    }
}

impl<D: Device> Way for Standard<'_, D> {
    /// `[group * tokens, head_dim]` each.
    type Out = Vec<D::Tensor>;
    /// Scores, then weights, `[group * tokens, tokens]` each.
    type Scratch = Vec<D::Tensor>;

    fn out(&self) -> Result<Vec<D::Tensor>> {
        self.of_groups(|rows| zeros(self.device, rows, self.shape.head_dim))
    }

    fn scratch(&self) -> Result<Vec<D::Tensor>> {
        self.of_groups(|rows| Ok(self.device.tensor(rows, self.shape.tokens)?))
    }

    fn run(&self, scores: &mut Vec<D::Tensor>, outs: &mut Vec<D::Tensor>) -> Result<()> {
        Pass::ALL.into_iter().try_for_each(|pass| self.pass(pass, scores, outs))
    }

    fn read(&self, outs: &Vec<D::Tensor>) -> Result<Vec<f32>> {
        let AttentionShape { tokens, head_dim, .. } = self.shape;
        let by_head = outs.iter().map(|out| Ok(self.device.read(out)?)).collect::<Result<Vec<_>>>()?.concat();
        let heads = |token: usize| {
            by_head.chunks(tokens * head_dim).map(move |head| &head[token * head_dim..][..head_dim])
        };
        Ok((0..tokens).flat_map(heads).flatten().copied().collect())
    }
}
