//! Attention of one token's query heads over one KV head at a time; threads share the (token, KV head) pairs.
//!
//! Scores of the whole context are computed first, then turned into weights, then the values are summed in order of
//! position: the order of every sum is that of the context alone.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::lanes::{LANES, Lanes};
use super::math::{dot_tile, exp, sum_by, tanh};
use super::{dims2, floats, indices, tensor2};
use crate::attention::AttentionOptions;
use crate::launch::{SimdTask, with_simd};

/// Multiplications per thread below which starting one costs more than it saves.
const PRODUCTS_PER_TASK: usize = 1 << 15;

pub(super) fn paged_attention(
    qkv: &FlexTensor,
    (key_cache, value_cache): (&FlexTensor, &FlexTensor),
    (positions, sequence_of_token, block_tables): (&FlexTensor, &FlexTensor, &FlexTensor),
    options: AttentionOptions,
) -> FlexTensor {
    let heads = options.heads;
    let [tokens, row_len] = dims2(qkv);
    let [_, blocks_per_row] = dims2(block_tables);
    let (qkv, keys, values) = (floats(qkv), floats(key_cache), floats(value_cache));
    let (positions, sequences, tables) = (indices(positions), indices(sequence_of_token), indices(block_tables));
    let group_len = heads.output_len() / heads.num_kv_heads;
    let mut out = vec![0.0; tokens * heads.output_len()];
    let attend = |index: usize, out: &mut [f32]| {
        let (token, kv_head) = (index / heads.num_kv_heads, index % heads.num_kv_heads);
        let table = &tables[sequences[token] as usize * blocks_per_row..][..blocks_per_row];
        let query = &qkv[token * row_len + kv_head * group_len..][..group_len];
        let position = positions[token] as usize;
        with_simd(Group { query, keys: &keys, values: &values, table, position, kv_head, options, out });
    };
    let context: usize = positions.iter().map(|&position| position as usize + 1).sum();
    let pairs_per_task = {
        let pairs = tokens * heads.num_kv_heads;
        let tasks = (context * heads.output_len() / PRODUCTS_PER_TASK).clamp(1, 8 * rayon::current_num_threads());
        pairs.div_ceil(tasks)
    };
    out.par_chunks_mut(group_len).with_min_len(pairs_per_task).enumerate().for_each(|(index, out)| attend(index, out));
    tensor2(out, tokens, heads.output_len())
}

/// The query heads of one token that share a KV head.
struct Group<'a> {
    query: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    table: &'a [i32],
    position: usize,
    kv_head: usize,
    options: AttentionOptions,
    out: &'a mut [f32],
}

impl Group<'_> {
    /// Where the KV head's row of the token at `at` begins in the cache.
    #[inline(always)]
    fn row(&self, at: usize) -> usize {
        let AttentionOptions { heads, block_size, .. } = self.options;
        let slot = self.table[at / block_size] as usize * block_size + at % block_size;
        (slot * heads.num_kv_heads + self.kv_head) * heads.head_dim
    }
}

impl SimdTask for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let head_dim = self.options.heads.head_dim;
        let first = self.options.sliding_window.map_or(0, |window| (self.position + 1).saturating_sub(window));
        let length = self.position + 1 - first;
        let rows: Vec<usize> = (first..=self.position).map(|at| self.row(at)).collect();
        let mut weights = vec![0.0f32; length];
        for (query, out) in self.query.chunks_exact(head_dim).zip(self.out.chunks_exact_mut(head_dim)) {
            scores::<L>(query, self.keys, &rows, &mut weights);
            let largest = scaled(&mut weights, self.options);
            for weight in weights.iter_mut() {
                *weight = exp(*weight - largest);
            }
            let total = sum_by(&weights, |weight| weight);
            weighted_sum::<L>(&weights, self.values, &rows, out);
            out.iter_mut().for_each(|value| *value /= total);
        }
    }
}

/// `weights[i] = query · keys[rows[i]..]`, four keys at a time.
#[inline(always)]
fn scores<L: Lanes>(query: &[f32], keys: &[f32], rows: &[usize], weights: &mut [f32]) {
    let key = |row: usize| &keys[row..row + query.len()];
    let (quads, rest) = rows.as_chunks::<4>();
    for (quad, weights) in quads.iter().zip(weights.chunks_exact_mut(4)) {
        weights.copy_from_slice(&dot_tile::<L, 1, 4, f32>([query], quad.map(key))[0]);
    }
    let done = rows.len() - rest.len();
    for (&row, weight) in rest.iter().zip(&mut weights[done..]) {
        *weight = dot_tile::<L, 1, 1, f32>([query], [key(row)])[0][0];
    }
}

/// Scales and caps the scores; returns the largest.
#[inline(always)]
fn scaled(weights: &mut [f32], options: AttentionOptions) -> f32 {
    let mut largest = f32::NEG_INFINITY;
    for weight in weights {
        *weight *= options.scale;
        if let Some(cap) = options.softcap {
            *weight = cap * tanh(*weight / cap);
        }
        largest = largest.max(*weight);
    }
    largest
}

/// `out = Σ weights[i] · values[rows[i]..]`, in order of `i` for each element; four lanes' widths at a time.
#[inline(always)]
fn weighted_sum<L: Lanes>(weights: &[f32], values: &[f32], rows: &[usize], out: &mut [f32]) {
    const PARTS: usize = 4;
    let (wide, rest) = out.as_chunks_mut::<{ PARTS * LANES }>();
    let done = wide.len() * PARTS * LANES;
    for (index, out) in wide.iter_mut().enumerate() {
        let mut sums = [L::zero(); PARTS];
        for (&weight, &row) in weights.iter().zip(rows) {
            let (value, _) = values[row + index * PARTS * LANES..].as_chunks::<LANES>();
            for part in 0..PARTS {
                sums[part] = L::splat(weight).mul_add(L::load(&value[part]), sums[part]);
            }
        }
        for (out, sum) in out.chunks_exact_mut(LANES).zip(sums) {
            out.copy_from_slice(&sum.to_array());
        }
    }
    for (index, out) in rest.chunks_mut(LANES).enumerate() {
        let mut sum = L::zero();
        for (&weight, &row) in weights.iter().zip(rows) {
            let mut value = [0.0; LANES];
            value[..out.len()].copy_from_slice(&values[row + done + index * LANES..][..out.len()]);
            sum = L::splat(weight).mul_add(L::load(&value), sum);
        }
        out.copy_from_slice(&sum.to_array()[..out.len()]);
    }
}
