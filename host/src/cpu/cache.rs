use super::buffer::Buffer;
use super::codes::Codes;
use super::isa::LANES;
use super::parallel::{self, Shared};
use super::shape;
use crate::{Batch, CacheSpec, KvDType, Result, Span};

/// Keys and values in f32, or in codes of eight bits; a buffer each a layer.
///
/// In f32 values are `[pages, kv_heads, page_size, head_dim]`. Keys are `[pages, kv_heads, page_size / 16, head_dim, 16]`: sixteen keys
/// side by side, so that their scores are one product with a panel and nothing is transposed when they are read. `page_size`
/// and `head_dim` are rounded up to whole vectors.
pub struct CpuCache {
    pub(super) layout: Layout,
    pub(super) layers: Vec<Stored>,
}

/// A layer's keys and values.
pub(super) enum Stored {
    F32 { keys: Buffer<f32>, values: Buffer<f32> },
    Codes { keys: Codes, values: Codes },
}

impl CpuCache {
    pub(super) fn new(spec: CacheSpec) -> Result<Self> {
        if spec.page_size == 0 || spec.kv_heads == 0 || spec.head_dim == 0 {
            return Err(shape("cache", "spec", "sizes above 0", format!("{spec:?}")));
        }
        let padded = |len: usize| len.checked_next_multiple_of(LANES).unwrap_or(usize::MAX);
        let keys = [spec.pages, spec.kv_heads, padded(spec.page_size), spec.head_dim];
        let values = [spec.pages, spec.kv_heads, spec.page_size, padded(spec.head_dim)];
        let layout = Layout { spec };
        let stored = || {
            let (of_keys, of_values) = ("the key cache", "the value cache");
            Ok(match spec.dtype {
                KvDType::Native => Stored::F32 {
                    keys: Buffer::reused(&keys, of_keys)?,
                    values: Buffer::reused(&values, of_values)?,
                },
                KvDType::Int8 | KvDType::Fp8 => Stored::Codes {
                    keys: Codes::new(layout, of_keys)?,
                    values: Codes::new(layout, of_values)?,
                },
            })
        };
        let layers = (0..spec.layers).map(|_| stored()).collect::<Result<Vec<_>>>()?;
        Ok(CpuCache { layout, layers })
    }

    pub(super) fn bytes(&self) -> usize {
        let bytes = |stored: &Stored| match stored {
            Stored::F32 { keys, values } => keys.bytes() + values.bytes(),
            Stored::Codes { keys, values } => keys.bytes() + values.bytes(),
        };
        self.layers.iter().map(bytes).sum()
    }

    pub(super) fn copy_pages(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        crate::batch::check_copies(copies, self.layout.spec.pages)?;
        let layout = self.layout;
        let page = |start: fn(&Layout, usize, usize, usize) -> usize, index| start(&layout, index, 0, 0);
        let [key, value] = [Layout::key_panel, Layout::value];
        for stored in &mut self.layers {
            for (from, to) in copies.iter().map(|&(from, to)| (from as usize, to as usize)) {
                match stored {
                    Stored::F32 { keys, values } => {
                        keys.copy_within(page(key, from)..page(key, from + 1), page(key, to));
                        values.copy_within(page(value, from)..page(value, from + 1), page(value, to));
                    }
                    Stored::Codes { keys, values } => {
                        keys.copy_page(layout, from, to);
                        values.copy_page(layout, from, to);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn check_layer(&self, op: &'static str, layer: usize) -> Result<()> {
        if layer < self.layers.len() {
            return Ok(());
        }
        Err(shape(op, "layer", format!("below {}", self.layers.len()), layer))
    }
}

/// Where keys and values stand in a layer's buffers.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) spec: CacheSpec,
}

impl Layout {
    /// Elements of a value head's row.
    pub(super) fn value_stride(&self) -> usize {
        self.spec.head_dim.next_multiple_of(LANES)
    }

    /// Where the panel of sixteen keys starts that holds `offset` of a page.
    #[inline(always)]
    pub(super) fn key_panel(&self, page: usize, head: usize, offset: usize) -> usize {
        let panels = self.spec.page_size.div_ceil(LANES);
        ((page * self.spec.kv_heads + head) * panels + offset / LANES) * self.spec.head_dim * LANES
    }

    /// Where a value starts.
    #[inline(always)]
    pub(super) fn value(&self, page: usize, head: usize, offset: usize) -> usize {
        ((page * self.spec.kv_heads + head) * self.spec.page_size + offset) * self.value_stride()
    }
}

/// A step's metadata, checked: spans follow each other and cover every row.
pub struct CpuStep(pub(super) Batch);

impl CpuStep {
    pub(super) fn new(batch: &Batch) -> Result<Self> {
        let tokens = batch.tokens();
        for (what, len) in [("positions", batch.positions.len()), ("slots", batch.slots.len())] {
            if len != tokens {
                return Err(shape("step", what, format!("{tokens} elements"), format!("{len} elements")));
            }
        }
        let mut next = 0;
        for span in &batch.spans {
            if span.query_start as usize != next {
                return Err(shape("step", "spans", format!("a span from row {next}"), span.query_start));
            }
            if span.kv_len < span.query_len {
                return Err(shape("step", "spans", format!("{} keys or more", span.query_len), span.kv_len));
            }
            next += span.query_len as usize;
        }
        if next != tokens {
            return Err(shape("step", "spans", format!("{tokens} rows"), format!("{next} rows")));
        }
        batch.check_spans()?;
        if let Some(row) = batch.outputs.iter().find(|&&row| row as usize >= tokens) {
            return Err(shape("step", "outputs", format!("rows below {tokens}"), row));
        }
        Ok(CpuStep(batch.clone()))
    }

    pub(super) fn check_rows(&self, op: &'static str, what: &'static str, rows: usize) -> Result<()> {
        if rows == self.0.tokens() {
            return Ok(());
        }
        Err(shape(op, what, format!("the step's {} rows", self.0.tokens()), format!("{rows} rows")))
    }

    /// Whether every span's pages exist and hold its keys.
    pub(super) fn check_pages(&self, op: &'static str, spec: &CacheSpec) -> Result<()> {
        for Span { kv_len, pages, .. } in &self.0.spans {
            let needed = (*kv_len as usize).div_ceil(spec.page_size);
            if pages.len() < needed {
                return Err(shape(op, "pages of a span", format!("{needed} or more"), pages.len()));
            }
            if let Some(page) = pages[..needed].iter().find(|&&page| page as usize >= spec.pages) {
                return Err(shape(op, "pages of a span", format!("below {}", spec.pages), page));
            }
        }
        Ok(())
    }
}

/// Cosines and sines, `[positions, head_dim]`: half a row of each.
pub struct CpuRope {
    pub(super) table: Buffer<f32>,
    pub(super) positions: usize,
    pub(super) head_dim: usize,
}

impl CpuRope {
    pub(super) fn new(inv_freq: &[f32], attention_factor: f32, positions: usize) -> Result<Self> {
        let half = inv_freq.len();
        let mut table = Buffer::zeroed(&[positions, 2, half], "the rotary table")?;
        let shared = Shared::new(&mut table);
        // A sine and a cosine cost about as much as thirty plain operations.
        parallel::rows(positions, 64 * half, |range| {
            for position in range {
                // SAFETY: each row is one task's.
                let row = unsafe { shared.slice(position * 2 * half, 2 * half) };
                for (i, &freq) in inv_freq.iter().enumerate() {
                    let (sin, cos) = (position as f64 * f64::from(freq)).sin_cos();
                    row[i] = (cos * f64::from(attention_factor)) as f32;
                    row[half + i] = (sin * f64::from(attention_factor)) as f32;
                }
            }
        });
        Ok(CpuRope { table, positions, head_dim: 2 * half })
    }
}
