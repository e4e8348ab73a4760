use tilewright_host::{Batch, Outputs};

use super::forward::Want;

/// Tokens a page of keys: what the tiles of every attention kernel divide.
pub(super) const PAGE_TOKENS: usize = 128;
/// Tokens that go through at once: enough to fill a product, little enough for scratch memory. A longer text goes alone.
const BATCH_TOKENS: usize = 4096;

/// Appends a sequence of `ids` on pages of its own, the next that are free.
fn push(batch: &mut Batch, ids: &[u32], want: Want, next_page: &mut u32) {
    let pages: Vec<u32> = (*next_page..).take(ids.len().div_ceil(PAGE_TOKENS)).collect();
    *next_page += pages.len() as u32;
    let first = batch.tokens() as u32;
    let outputs = if want == Want::All { Outputs::All } else { Outputs::None };
    batch.push(ids, 0, &pages, PAGE_TOKENS as u32, outputs);
    if want != Want::All {
        batch.outputs.push(first);
    }
}

/// Texts in batches of whole texts, in their order: each batch and how many outputs each of its texts has.
pub(super) struct TextBatches<'a> {
    texts: &'a [(&'a [u32], Option<&'a [u32]>)],
    context: usize,
    want: Want,
}

impl<'a> TextBatches<'a> {
    pub fn new(texts: &'a [(&'a [u32], Option<&'a [u32]>)], context: usize, want: Want) -> Self {
        TextBatches { texts, context, want }
    }
}

impl Iterator for TextBatches<'_> {
    type Item = (Batch, Vec<usize>);

    fn next(&mut self) -> Option<(Batch, Vec<usize>)> {
        let (mut batch, mut lens, mut next_page) = (Batch::default(), Vec::new(), 0);
        while let Some(&(ids, types)) = self.texts.first() {
            if !lens.is_empty() && batch.tokens() + ids.len() > BATCH_TOKENS {
                break;
            }
            let first = batch.tokens();
            push(&mut batch, ids, self.want, &mut next_page);
            if let Some(types) = types {
                // A place is a position of a type of token.
                for (position, kind) in batch.positions[first..].iter_mut().zip(types) {
                    *position += kind * self.context as u32;
                }
            }
            lens.push(if self.want == Want::All { ids.len() } else { 1 });
            self.texts = &self.texts[1..];
        }
        if lens.is_empty() { None } else { Some((batch, lens)) }
    }
}

/// How images become rows of patches.
pub(super) struct Images {
    /// Channels, pixels along a side, pixels along a patch's side.
    pub shape: [usize; 3],
    /// Columns of an unfolded patch: its elements, and zeros up to a multiple of what the device takes.
    pub unfolded: usize,
}

impl Images {
    /// Tokens of an image: the class token and the patches.
    fn tokens(&self) -> usize {
        let [_, size, patch] = self.shape;
        1 + (size / patch).pow(2)
    }

    /// Images that go through together.
    pub fn at_once(&self) -> usize {
        (BATCH_TOKENS / self.tokens()).max(1)
    }

    /// The batch of `count` images: a token's id is its place.
    pub fn batch(&self, count: usize) -> Batch {
        let places: Vec<u32> = (0..self.tokens() as u32).collect();
        let (mut batch, mut next_page) = (Batch::default(), 0);
        for _ in 0..count {
            push(&mut batch, &places, Want::First, &mut next_page);
        }
        batch
    }

    /// `[tokens, unfolded]` of all images: for the class token zeros, for each patch its elements by channel, row and column, the order
    /// of a convolution's weights.
    pub fn unfold(&self, images: &[&[f32]]) -> Vec<f32> {
        let [channels, size, patch] = self.shape;
        let mut rows = vec![0.0; images.len() * self.tokens() * self.unfolded];
        for (image, rows) in images.iter().zip(rows.chunks_exact_mut(self.tokens() * self.unfolded)) {
            for (index, row) in rows.chunks_exact_mut(self.unfolded).skip(1).enumerate() {
                let (top, left) = (index / (size / patch) * patch, index % (size / patch) * patch);
                for channel in 0..channels {
                    for y in 0..patch {
                        let from = (channel * size + top + y) * size + left;
                        let to = (channel * patch + y) * patch;
                        row[to..to + patch].copy_from_slice(&image[from..from + patch]);
                    }
                }
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_one_behind_the_other_on_pages_of_their_own() {
        let (long, short) = (vec![7; 130], [1, 2, 3]);
        let texts = [(&long[..], None), (&short[..], Some(&[0, 1, 1][..]))];
        let batches: Vec<_> = TextBatches::new(&texts, 200, Want::First).collect();
        assert_eq!(batches.len(), 1);
        let (batch, lens) = &batches[0];
        assert_eq!((&lens[..], &batch.outputs[..]), (&[1, 1][..], &[0, 130][..]));
        assert_eq!((&batch.spans[0].pages[..], &batch.spans[1].pages[..]), (&[0, 1][..], &[2][..]));
        assert_eq!(batch.positions[128..], [128, 129, 0, 201, 202]);
        assert_eq!(batch.slots[130..], [256, 257, 258]);
    }

    #[test]
    fn batches_are_cut_between_texts() {
        let (half, whole) = (vec![1; BATCH_TOKENS / 2 + 1], vec![1; BATCH_TOKENS + 1]);
        let texts = [(&half[..], None), (&half[..], None), (&whole[..], None), (&half[..1], None)];
        let lens: Vec<_> = TextBatches::new(&texts, 8192, Want::All).map(|(_, lens)| lens).collect();
        assert_eq!(lens, [vec![half.len()], vec![half.len()], vec![whole.len()], vec![1]]);
        assert_eq!(TextBatches::new(&[], 8, Want::All).count(), 0);
    }

    #[test]
    fn patches_are_unfolded_in_the_order_of_weights() {
        // Two channels of 4 x 4 pixels, patches of 2 x 2, padded from 8 columns to 9.
        let image: Vec<f32> = (0..32).map(|pixel| pixel as f32).collect();
        let images = Images { shape: [2, 4, 2], unfolded: 9 };
        let rows = images.unfold(&[&image]);
        assert_eq!(rows.len(), 5 * 9);
        assert_eq!(rows[..9], [0.0; 9]);
        assert_eq!(rows[2 * 9..3 * 9], [2.0, 3.0, 6.0, 7.0, 18.0, 19.0, 22.0, 23.0, 0.0]);
        assert_eq!(images.batch(2).outputs, [0, 5]);
    }
}
