use rayon::prelude::*;

use super::codes_a_word;
use super::prepare::Input;
use crate::cpu::buffer::Buffer;
use crate::cpu::isa::LANES;
use crate::{CodeBits, QuantizedPart, Result};

/// Columns summed before they join the total: as in products with unquantised weights.
const MAX_SEGMENT_COLS: usize = 256;

/// Columns that are summed before they join the total: a group, or 256 of its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) group: usize,
    /// The first of its words' blocks.
    pub(super) block: usize,
    pub(super) blocks: usize,
}

/// A part in panels of sixteen rows. A block is a word of each row, 64 bytes; a panel is its blocks in the order of the columns,
/// `[rows / 16][blocks][16]`. Each group starts with a word of its own: the codes that pad its last word, and all rows past the
/// last, meet activations or scales of 0.
pub(in crate::cpu) struct Packed {
    /// Where the part's outputs start.
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) bits: CodeBits,
    words: Buffer<u32>,
    /// Of each panel and group sixteen scales, then sixteen zero points, negated.
    scales: Buffer<f32>,
    pub(super) segments: Vec<Segment>,
    /// A panel's.
    blocks: usize,
    groups: usize,
    group: usize,
    pub(super) input: Input,
}

impl Packed {
    pub(super) fn new(part: &QuantizedPart, first_row: usize) -> Result<Packed> {
        let codes = codes_a_word(part.bits);
        let mut segments = Vec::new();
        let mut blocks = 0;
        for (group, from) in (0..part.cols).step_by(part.group).enumerate() {
            let end = blocks + part.group.min(part.cols - from).div_ceil(codes);
            for block in (blocks..end).step_by(MAX_SEGMENT_COLS / codes) {
                segments.push(Segment { group, block, blocks: (end - block).min(MAX_SEGMENT_COLS / codes) });
            }
            blocks = end;
        }
        let (panels, groups) = (part.rows.div_ceil(LANES), part.groups());
        let mut packed = Packed {
            first_row,
            rows: part.rows,
            bits: part.bits,
            words: Buffer::zeroed(&[panels, blocks, LANES], "a quantised weight matrix")?,
            scales: Buffer::zeroed(&[panels, groups, 2 * LANES], "scales of a quantised weight matrix")?,
            segments,
            blocks,
            groups,
            group: part.group,
            input: Input::default(),
        };
        packed.input = Input::new(part, &packed);
        packed.fill(part);
        Ok(packed)
    }

    fn fill(&mut self, part: &QuantizedPart) {
        let (blocks, groups, bits) = (self.blocks, self.groups, self.bits.bits());
        let words = self.words.par_chunks_mut(blocks * LANES);
        let scales = self.scales.par_chunks_mut(groups * 2 * LANES);
        let position = Columns::of(part);
        words.zip(scales).enumerate().for_each(|(panel, (words, scales))| {
            for lane in 0..LANES.min(part.rows - panel * LANES) {
                let row = panel * LANES + lane;
                for (col, &code) in part.codes[row * part.cols..][..part.cols].iter().enumerate() {
                    let (block, i) = position.block(col);
                    words[block * LANES + lane] |= u32::from(code) << (i * bits);
                }
                for group in 0..groups {
                    let at = group * 2 * LANES + lane;
                    scales[at] = part.scales[row * groups + group];
                    scales[at + LANES] = -f32::from(part.zeros[row * groups + group]);
                }
            }
        });
    }

    /// A panel's words.
    pub(super) fn panel(&self, panel: usize) -> &[u32] {
        &self.words[panel * self.blocks * LANES..][..self.blocks * LANES]
    }

    /// Sixteen scales and sixteen negated zero points.
    pub(super) fn group(&self, panel: usize, group: usize) -> &[f32] {
        &self.scales[(panel * self.groups + group) * 2 * LANES..][..2 * LANES]
    }

    /// Columns, those that pad groups to whole words included.
    pub(super) fn padded_cols(&self) -> usize {
        self.blocks * codes_a_word(self.bits)
    }

    /// Elements of a row of prepared activations: those of the packed columns, then the sum of each segment's.
    pub(super) fn prepared_cols(&self) -> usize {
        self.padded_cols() + self.segments.len()
    }

    /// Bytes that a product reads.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        self.words.bytes() + self.scales.bytes()
    }

    /// The part's outputs.
    pub(in crate::cpu) fn output_rows(&self) -> std::ops::Range<usize> {
        self.first_row..self.first_row + self.rows
    }

    /// The weights of one of the part's outputs by activation, without factors of the activations.
    pub(in crate::cpu) fn read_row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / LANES, row % LANES);
        let columns = Columns { group: self.group, codes: codes_a_word(self.bits) };
        let words = self.panel(panel);
        for col in 0..out.len() {
            let (block, i) = columns.block(col);
            let code = words[block * LANES + lane] >> (i * self.bits.bits()) & u32::from(self.bits.largest());
            let group = self.group(panel, col / self.group);
            let weight = (code as f32 + group[LANES + lane]) * group[lane];
            out[self.input.activation(columns.padded(col))] = weight;
        }
    }
}

/// Where stored columns lie among the packed ones.
pub(super) struct Columns {
    group: usize,
    codes: usize,
}

impl Columns {
    pub(super) fn of(part: &QuantizedPart) -> Columns {
        Columns { group: part.group, codes: codes_a_word(part.bits) }
    }

    /// The block, and the place in its words.
    fn block(&self, col: usize) -> (usize, usize) {
        let (group, within) = (col / self.group, col % self.group);
        (group * self.group.div_ceil(self.codes) + within / self.codes, within % self.codes)
    }

    /// The packed column.
    pub(super) fn padded(&self, col: usize) -> usize {
        let (block, i) = self.block(col);
        block * self.codes + i
    }
}
