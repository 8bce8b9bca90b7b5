//! Attention of one token's query heads over one KV head at a time; threads share the (token, KV head) pairs.
//!
//! Scores of the whole context are computed first, then turned into weights, then the values are summed in order of
//! position: the order of every sum is that of the context alone.

#![allow(clippy::needless_range_loop, reason = "closures around vectors would not inherit the instruction set")]

use std::borrow::Cow;

use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::lanes::{LANES, Lanes};
use super::math::{dot_tile, exp, sum_by, tanh};
use super::{bytes, dims2, floats, indices, tensor2};
use crate::attention::{AttentionOptions, KvTensors};
use crate::e4m3::decode;
use crate::launch::{SimdTask, with_simd};

/// Multiplications per thread below which starting one costs more than it saves.
const PRODUCTS_PER_TASK: usize = 1 << 15;

pub(super) fn paged_attention(
    qkv: &FlexTensor,
    cache: &KvTensors<Flex>,
    (positions, sequence_of_token, block_tables): (&FlexTensor, &FlexTensor, &FlexTensor),
    options: AttentionOptions,
) -> FlexTensor {
    let heads = options.heads;
    let [tokens, row_len] = dims2(qkv);
    let [_, blocks_per_row] = dims2(block_tables);
    let qkv = floats(qkv);
    let cache = match cache {
        KvTensors::Floats(keys, values) => Stored::Floats(floats(keys), floats(values)),
        KvTensors::Codes(keys, values) => Stored::Codes(bytes(keys), bytes(values)),
    };
    let (positions, sequences, tables) = (indices(positions), indices(sequence_of_token), indices(block_tables));
    let group_len = heads.output_len() / heads.num_kv_heads;
    let mut out = vec![0.0; tokens * heads.output_len()];
    let attend = |index: usize, out: &mut [f32]| {
        let (token, kv_head) = (index / heads.num_kv_heads, index % heads.num_kv_heads);
        let table = &tables[sequences[token] as usize * blocks_per_row..][..blocks_per_row];
        let query = &qkv[token * row_len + kv_head * group_len..][..group_len];
        let position = positions[token] as usize;
        with_simd(Group { query, cache: &cache, table, position, kv_head, options, out });
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

/// Keys and values of all slots.
enum Stored<'a> {
    Floats(Cow<'a, [f32]>, Cow<'a, [f32]>),
    Codes(&'a [u8], &'a [u8]),
}

/// The query heads of one token that share a KV head.
struct Group<'a> {
    query: &'a [f32],
    cache: &'a Stored<'a>,
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
        let first = self.options.sliding_window.map_or(0, |window| (self.position + 1).saturating_sub(window));
        let mut rows = Vec::with_capacity(self.position + 1 - first);
        for at in first..=self.position {
            rows.push(self.row(at));
        }
        let head_dim = self.options.heads.head_dim;
        let decoded;
        let (keys, values) = match self.cache {
            Stored::Floats(keys, values) => (&keys[..], &values[..]),
            Stored::Codes(keys, values) => {
                decoded = [decoded_rows(keys, &rows, head_dim), decoded_rows(values, &rows, head_dim)];
                rows.iter_mut().enumerate().for_each(|(index, row)| *row = index * head_dim);
                (&decoded[0][..], &decoded[1][..])
            }
        };
        let mut weights = vec![0.0f32; HEADS_AT_ONCE * rows.len()];
        let num_heads = self.query.len() / head_dim;
        let mut done = 0;
        while done < num_heads {
            let part = done * head_dim..;
            let (query, out) = (&self.query[part.clone()], &mut self.out[part]);
            let heads = Heads { query, out, keys, values, rows: &rows, options: self.options };
            done += match num_heads - done {
                1 => heads.attend::<L, 1>(&mut weights),
                2 => heads.attend::<L, 2>(&mut weights),
                3 => heads.attend::<L, 3>(&mut weights),
                _ => heads.attend::<L, 4>(&mut weights),
            };
        }
    }
}

/// The numbers of the rows that begin at `rows`, without gaps.
#[inline(always)]
fn decoded_rows(codes: &[u8], rows: &[usize], head_dim: usize) -> Vec<f32> {
    let mut numbers = vec![0.0; rows.len() * head_dim];
    for (numbers, &row) in numbers.chunks_exact_mut(head_dim).zip(rows) {
        for (number, &code) in numbers.iter_mut().zip(&codes[row..row + head_dim]) {
            *number = decode(code);
        }
    }
    numbers
}

/// Query heads that are computed together, sharing what is read of the cache.
const HEADS_AT_ONCE: usize = 4;

/// Some query heads of one KV head and the rows of the cache that they attend to.
struct Heads<'a> {
    query: &'a [f32],
    out: &'a mut [f32],
    keys: &'a [f32],
    values: &'a [f32],
    rows: &'a [usize],
    options: AttentionOptions,
}

impl Heads<'_> {
    /// Computes the first `G` heads; returns `G`.
    #[inline(always)]
    fn attend<L: Lanes, const G: usize>(self, weights: &mut [f32]) -> usize {
        let (head_dim, length) = (self.options.heads.head_dim, self.rows.len());
        let mut queries = [&self.query[..0]; G];
        for g in 0..G {
            queries[g] = &self.query[g * head_dim..(g + 1) * head_dim];
        }
        scores::<L, G>(queries, self.keys, self.rows, weights);
        let mut totals = [0.0; G];
        for g in 0..G {
            let weights = &mut weights[g * length..(g + 1) * length];
            let largest = scaled(weights, self.options);
            for weight in weights.iter_mut() {
                *weight = exp(*weight - largest);
            }
            totals[g] = sum_by(weights, |weight| weight);
        }
        weighted_sum::<L, G>(weights, self.values, self.rows, head_dim, self.out);
        for g in 0..G {
            for value in &mut self.out[g * head_dim..(g + 1) * head_dim] {
                *value /= totals[g];
            }
        }
        G
    }
}

/// `weights[g][i] = queries[g] · keys[rows[i]..]`, four keys at a time.
#[inline(always)]
fn scores<L: Lanes, const G: usize>(queries: [&[f32]; G], keys: &[f32], rows: &[usize], weights: &mut [f32]) {
    let head_dim = queries[0].len();
    let (quads, rest) = rows.as_chunks::<4>();
    for (index, &[a, b, c, d]) in quads.iter().enumerate() {
        let four = [&keys[a..a + head_dim], &keys[b..b + head_dim], &keys[c..c + head_dim], &keys[d..d + head_dim]];
        let products = dot_tile::<L, G, 4, f32>(queries, four);
        for g in 0..G {
            weights[g * rows.len() + 4 * index..][..4].copy_from_slice(&products[g]);
        }
    }
    let done = rows.len() - rest.len();
    for (index, &row) in rest.iter().enumerate() {
        let products = dot_tile::<L, G, 1, f32>(queries, [&keys[row..row + head_dim]]);
        for g in 0..G {
            weights[g * rows.len() + done + index] = products[g][0];
        }
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

/// `out[g] = Σ weights[g][i] · values[rows[i]..]`, in order of `i` for each element; four lanes' widths at a time.
#[inline(always)]
fn weighted_sum<L: Lanes, const G: usize>(
    weights: &[f32],
    values: &[f32],
    rows: &[usize],
    head_dim: usize,
    out: &mut [f32],
) {
    const PARTS: usize = 4;
    let mut start = 0;
    while start + PARTS * LANES <= head_dim {
        let mut sums = [[L::zero(); PARTS]; G];
        for (index, &row) in rows.iter().enumerate() {
            let (value, _) = values[row + start..].as_chunks::<LANES>();
            let value = [L::load(&value[0]), L::load(&value[1]), L::load(&value[2]), L::load(&value[3])];
            for g in 0..G {
                let weight = L::splat(weights[g * rows.len() + index]);
                for part in 0..PARTS {
                    sums[g][part] = weight.mul_add(value[part], sums[g][part]);
                }
            }
        }
        for g in 0..G {
            for part in 0..PARTS {
                let place = g * head_dim + start + part * LANES;
                out[place..place + LANES].copy_from_slice(&sums[g][part].to_array());
            }
        }
        start += PARTS * LANES;
    }
    while start < head_dim {
        let width = LANES.min(head_dim - start);
        let mut sums = [L::zero(); G];
        for (index, &row) in rows.iter().enumerate() {
            let mut value = [0.0; LANES];
            value[..width].copy_from_slice(&values[row + start..][..width]);
            let value = L::load(&value);
            for g in 0..G {
                sums[g] = L::splat(weights[g * rows.len() + index]).mul_add(value, sums[g]);
            }
        }
        for g in 0..G {
            out[g * head_dim + start..][..width].copy_from_slice(&sums[g].to_array()[..width]);
        }
        start += width;
    }
}
