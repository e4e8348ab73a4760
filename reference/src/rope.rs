use crate::Real;
use crate::layers::normalise;

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// `theta^(-2i / head_dim)`.
    Default,
    /// Positions divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3.1: wavelengths above `original_context / low_freq_factor` are stretched by `factor`, those below
    /// `original_context / high_freq_factor` kept, and between the two interpolated.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_context: f64 },
}

/// The angle a position adds to each pair of elements, `[head_dim / 2]`.
pub fn rope_frequencies(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f64> {
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    plain.map(|frequency| scaled(frequency, scaling)).collect()
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength < original_context / high_freq_factor {
                return frequency;
            }
            if wavelength > original_context / low_freq_factor {
                return frequency / factor;
            }
            let smooth =
                (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }
}

/// `[positions, head_dim]`: of each position `head_dim / 2` cosines, then as many sines.
pub fn rope_table(frequencies: &[f64], positions: usize) -> Vec<f64> {
    let mut table = Vec::with_capacity(positions * 2 * frequencies.len());
    for position in 0..positions {
        table.extend(frequencies.iter().map(|f| (position as f64 * f).cos()));
        table.extend(frequencies.iter().map(|f| (position as f64 * f).sin()));
    }
    table
}

/// Rotates one head by the half-split convention: element `i` pairs with `i + head_dim / 2`.
pub fn rope<R: Real>(head: &[R], cos_sin: &[f32]) -> Vec<R> {
    let half = head.len() / 2;
    let mut rotated = head.to_vec();
    for i in 0..half {
        let (x, y) = (head[i], head[i + half]);
        let (cos, sin) = (R::of(cos_sin[i]), R::of(cos_sin[half + i]));
        rotated[i] = (x * cos - y * sin).stored();
        rotated[i + half] = (y * cos + x * sin).stored();
    }
    rotated
}

/// A fused projection to be split, normed and rotated.
#[derive(Debug, Clone, Copy)]
pub struct RopeProblem<'a> {
    /// `[tokens, (q_heads + 2 * kv_heads) * head_dim]`
    pub qkv: &'a [f32],
    /// `[head_dim]`
    pub q_norm: Option<&'a [f32]>,
    /// `[head_dim]`
    pub k_norm: Option<&'a [f32]>,
    /// `[max_position, head_dim]`
    pub cos_sin: &'a [f32],
    /// `[tokens]`
    pub positions: &'a [u32],
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub eps: f32,
}

/// What [`split_and_rotate`] leaves, each `[tokens, heads, head_dim]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Qkv<R> {
    pub q: Vec<R>,
    pub k: Vec<R>,
    pub v: Vec<R>,
}

/// Splits a fused projection, norms query and key heads where asked, and rotates them.
pub fn split_and_rotate<R: Real>(p: &RopeProblem<'_>) -> Qkv<R> {
    let mut out = Qkv { q: Vec::new(), k: Vec::new(), v: Vec::new() };
    let heads = p.q_heads + 2 * p.kv_heads;
    for (token, row) in p.qkv.chunks(heads * p.head_dim).enumerate() {
        let cos_sin = &p.cos_sin[p.positions[token] as usize * p.head_dim..][..p.head_dim];
        for (head, values) in row.chunks(p.head_dim).enumerate() {
            let values: Vec<R> = values.iter().map(|&v| R::of(v)).collect();
            let (to, norm) = if head < p.q_heads {
                (&mut out.q, p.q_norm)
            } else if head < p.q_heads + p.kv_heads {
                (&mut out.k, p.k_norm)
            } else {
                out.v.extend(values);
                continue;
            };
            let values = match norm {
                Some(weight) => normalise(&values, weight, p.eps),
                None => values,
            };
            to.extend(rope(&values, cos_sin));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_lengths_and_composes() {
        let frequencies = rope_frequencies(4, 10_000.0, RopeScaling::Default);
        let table: Vec<f32> = rope_table(&frequencies, 6).iter().map(|&v| v as f32).collect();
        let head = [0.5f64, -1.0, 2.0, 0.25];
        let twice = rope(&rope(&head, &table[2 * 4..3 * 4]), &table[3 * 4..4 * 4]);
        let once = rope(&head, &table[5 * 4..6 * 4]);
        for (a, b) in twice.iter().zip(&once) {
            assert!((a - b).abs() < 1e-6, "{twice:?} {once:?}");
        }
        assert_eq!(rope(&head, &table[..4]), head);
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let plain = rope_frequencies(128, 500_000.0, RopeScaling::Default);
        let stretched = rope_frequencies(128, 500_000.0, scaling);
        assert_eq!(stretched[0], plain[0]);
        assert_eq!(stretched[63], plain[63] / 8.0);
        assert!(stretched.iter().zip(&plain).all(|(s, p)| *s <= *p && *s >= p / 8.0));
        assert!(stretched.windows(2).all(|w| w[1] < w[0]));
        let linear = rope_frequencies(128, 500_000.0, RopeScaling::Linear { factor: 4.0 });
        assert_eq!(linear[5], plain[5] / 4.0);
    }
}
