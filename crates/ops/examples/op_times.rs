//! cargo run --release -p firebrick-ops --example op_times -- cuda
//!
//! Times each operation at the shapes of two models, called one by one and replayed from a captured graph, and says how
//! fast it moves the bytes that it must move (each input read once, each output written once). `host us` is how long the
//! host is busy with its part of a replay. Weights and caches rotate among copies larger than any cache. Arguments: the
//! device's name, then operations to keep (all by default).

use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use firebrick_ops::e4m3::E4M3;
use firebrick_ops::testing::{AttentionCase, Seeded};
use firebrick_ops::{
    Activation, AttentionOptions, Backend, CapturedGraph, GraphMemory, HeadLayout, KvLayer, QkvOptions, RopeTable,
    RowParams, SamplePlan, Weight, activation_dtype, add_rms_norm, gated_activation, gather_rows, holds_fp8_cache,
    holds_fp8_weights, int_tensor, layer_norm, linear, open_device, paged_attention, rms_norm, rope_and_store_kv,
    sample,
};

/// The sizes of a model that set the shapes of its operations.
struct Model {
    name: &'static str,
    hidden: usize,
    feed_forward: usize,
    vocabulary: usize,
    heads: HeadLayout,
}

const MODELS: [Model; 2] = [
    Model {
        name: "SmolLM2-135M",
        hidden: 576,
        feed_forward: 1536,
        vocabulary: 49152,
        heads: HeadLayout { num_heads: 9, num_kv_heads: 3, head_dim: 64 },
    },
    Model {
        name: "Llama-3.1-8B",
        hidden: 4096,
        feed_forward: 14336,
        vocabulary: 128_256,
        heads: HeadLayout { num_heads: 32, num_kv_heads: 8, head_dim: 128 },
    },
];

/// Bytes among which inputs rotate: several times the largest second-level cache.
const ROTATED_BYTES: usize = 256 << 20;
const BLOCK_SIZE: usize = 16;
/// Rows up to which they are sequences that decode.
const DECODED_MAX: usize = 64;
const REPEATS: usize = 20;

/// What is timed with.
struct Bench {
    device: Device,
    dtype: DType,
    kept: Vec<String>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "cuda".into());
    let backend = Backend::BUILT.iter().copied().find(|backend| backend.name() == name);
    let backend = backend.unwrap_or_else(|| panic!("this build has no backend {name}"));
    let device = open_device(backend).unwrap_or_else(|error| panic!("{error}"));
    let dtype = activation_dtype(&device, DType::BF16);
    let bench = Bench { device, dtype, kept: arguments.collect() };
    println!(
        "{:13} {:4} {:34} {:>9} {:>9} {:>9} {:>8} {:>8}",
        "model", "rows", "operation", "eager us", "graph us", "host us", "GB/s", "TFLOP/s"
    );
    for model in &MODELS {
        for rows in [1, 8, 16, 64, 512] {
            bench.elementwise(model, rows);
            bench.products(model, rows);
            bench.attention(model, rows);
        }
        for rows in [2, 4, 32, 128, 2048] {
            bench.products(model, rows);
        }
        for rows in [1, 8, 64, 256] {
            bench.sampling(model, rows);
        }
    }
}

impl Bench {
    /// Random elements: few rows of them, repeated.
    fn random(&self, [rows, columns]: [usize; 2]) -> Tensor<2> {
        let few = rows.min(512);
        let values = Seeded::new((rows * columns) as u64).tensor::<2>([few, columns], &self.device).cast(self.dtype);
        values.repeat_dim(0, rows.div_ceil(few)).narrow(0, 0, rows)
    }

    fn floats(&self, length: usize) -> Tensor<1> {
        Seeded::new(length as u64).tensor([length], &self.device)
    }

    fn elementwise(&self, model: &Model, rows: usize) {
        let Model { hidden, feed_forward, .. } = *model;
        let label = |operation: &str| format!("{:13} {rows:4} {operation:34}", model.name);
        let row_bytes = rows * hidden * self.dtype.size();
        let (x, weight) = (self.random([rows, hidden]), self.floats(hidden));
        self.time("rms_norm", label("rms_norm"), (2 * row_bytes, 0), 32, move |_| rms_norm(x.clone(), &weight, 1e-5));
        let (x, residual, weight) = (self.random([rows, hidden]), self.random([rows, hidden]), self.floats(hidden));
        self.time("add_rms_norm", label("add_rms_norm"), (4 * row_bytes, 0), 32, move |_| {
            add_rms_norm(x.clone(), residual.clone(), &weight, 1e-5).0
        });
        let (x, weight, bias) = (self.random([rows, hidden]), self.floats(hidden), self.floats(hidden));
        self.time("layer_norm", label("layer_norm"), (2 * row_bytes, 0), 32, move |_| {
            layer_norm(x.clone(), &weight, &bias, 1e-5)
        });
        let gate_up = self.random([rows, 2 * feed_forward]);
        let bytes = 3 * rows * feed_forward * self.dtype.size();
        self.time("gated_activation", label("gated_activation"), (bytes, 0), 32, move |_| {
            gated_activation(gate_up.clone(), Activation::Silu)
        });
        let table = self.random([model.vocabulary, hidden]);
        let ids = (0..rows).map(|row| (row * 7919 % model.vocabulary) as i32).collect();
        let ids = int_tensor(ids, [rows], &self.device);
        self.time("gather_rows", label("gather_rows"), (2 * row_bytes, 0), 32, move |_| gather_rows(&table, &ids));
    }

    fn products(&self, model: &Model, rows: usize) {
        let Model { hidden, feed_forward, vocabulary, heads, .. } = *model;
        let shapes = [
            ("qkv", heads.row_len(), hidden),
            ("output", hidden, heads.output_len()),
            ("gate_up", 2 * feed_forward, hidden),
            ("down", hidden, feed_forward),
            ("logits", vocabulary, hidden),
        ];
        for (name, outputs, inputs) in shapes {
            let bytes = outputs * inputs * self.dtype.size();
            let copies = (ROTATED_BYTES / bytes).clamp(1, 64);
            let weights: Vec<Weight> = (0..copies).map(|_| Weight::dense(self.random([outputs, inputs]))).collect();
            let x = self.random([rows, inputs]);
            let moved = bytes + rows * (inputs + outputs) * self.dtype.size();
            let label = format!("{:13} {rows:4} {:34}", model.name, format!("linear {name} {outputs}x{inputs}"));
            self.time("linear", label, (moved, 2 * rows * outputs * inputs), copies.max(8), move |call| {
                linear(x.clone(), &weights[call % copies], None)
            });
            if name != "logits" && holds_fp8_weights(&self.device) {
                self.fp8_product(model, name, [rows, outputs, inputs]);
            }
        }
    }

    fn fp8_product(&self, model: &Model, name: &str, [rows, outputs, inputs]: [usize; 3]) {
        let copies = (ROTATED_BYTES / (outputs * inputs)).clamp(1, 64);
        let codes = bytes::Bytes::from_iter((0..outputs * inputs).map(|at| ((at * 2_654_435_761) >> 9) as u8 & 0xf7));
        let weight = |_| Weight::fp8(vec![codes.clone()], vec![1e-4; outputs], [outputs, inputs], &self.device);
        let weights: Vec<Weight> = (0..copies).map(weight).collect();
        let x = self.random([rows, inputs]);
        let moved = outputs * inputs + rows * (inputs + outputs) * self.dtype.size();
        let label = format!("{:13} {rows:4} {:34}", model.name, format!("linear_fp8 {name} {outputs}x{inputs}"));
        self.time("linear_fp8", label, (moved, 2 * rows * outputs * inputs), copies.max(8), move |call| {
            linear(x.clone(), &weights[call % copies], None)
        });
    }

    /// One sequence of `rows` tokens for many rows (prefill), else as many sequences that decode one token each.
    fn attention(&self, model: &Model, rows: usize) {
        let prefills = rows > DECODED_MAX;
        let contexts: &[usize] = if prefills { &[rows] } else { &[128, 1024, 8192] };
        for &context in contexts {
            let sequences = if prefills { vec![(rows, context)] } else { vec![(1, context); rows] };
            let case = AttentionCase::new(&sequences, BLOCK_SIZE, &mut Seeded::new(1), &self.device);
            let label = |operation: &str| {
                format!("{:13} {rows:4} {:34}", model.name, format!("{operation}, context {context}"))
            };
            if context == contexts[0] {
                self.rotation(model.heads, &case, label("rope_and_store_kv"));
            }
            let pairs = if prefills { rows * (rows + 1) / 2 } else { rows * context };
            for (operation, dtype) in [("paged_attention", self.dtype), ("paged_attention_fp8", E4M3)] {
                let tokens = sequences.len() * context;
                self.contexts((operation, dtype), (model.heads, &case), (tokens, pairs), label(operation));
            }
        }
    }

    fn rotation(&self, heads: HeadLayout, case: &AttentionCase, label: String) {
        let (rows, metadata) = (case.num_tokens(), case.metadata(&self.device));
        let mut layer = self.layer(heads, case, self.dtype);
        let mut qkv = Some(self.random([rows, heads.row_len()]));
        let table = RopeTable(Seeded::new(3).tensor([rows.max(128), heads.head_dim], &self.device));
        let options = QkvOptions { heads, rotary_dim: heads.head_dim, norm_eps: None };
        let bytes = 2 * rows * heads.row_len() * self.dtype.size();
        self.time("rope_and_store_kv", label, (bytes, 0), 16, move |_| {
            let taken = qkv.take().expect("put back below");
            qkv = Some(rope_and_store_kv(taken, None, Some(&table), &metadata, (&mut layer, options)));
            // Work in place: the next call must find no other owner.
            table.0.clone()
        });
    }

    /// Attention over `tokens` tokens in the cache, with `pairs` of a query and a key it sees.
    fn contexts(
        &self,
        (operation, dtype): (&str, DType),
        (heads, case): (HeadLayout, &AttentionCase),
        (tokens, pairs): (usize, usize),
        label: String,
    ) {
        if dtype == E4M3 && !holds_fp8_cache(&self.device) {
            return;
        }
        let cache_bytes = 2 * tokens * heads.num_kv_heads * heads.head_dim * dtype.size();
        let copies = (ROTATED_BYTES / cache_bytes).clamp(1, 16);
        let everything = case.whole_contexts();
        let whole = everything.metadata(&self.device);
        let store = QkvOptions { heads, rotary_dim: 0, norm_eps: None };
        let filled = |_| {
            let mut layer = self.layer(heads, case, dtype);
            let past = self.random([everything.num_tokens(), heads.row_len()]);
            rope_and_store_kv(past, None, None, &whole, (&mut layer, store));
            layer
        };
        let layers: Vec<KvLayer> = (0..copies).map(filled).collect();
        let (rows, metadata) = (case.num_tokens(), case.metadata(&self.device));
        let qkv = self.random([rows, heads.row_len()]);
        let scale = (heads.head_dim as f32).powf(-0.5);
        let options = AttentionOptions { heads, block_size: BLOCK_SIZE, scale, sliding_window: None, softcap: None };
        let bytes = cache_bytes + rows * 2 * heads.output_len() * self.dtype.size();
        self.time(operation, label, (bytes, 4 * pairs * heads.output_len()), copies.max(4), move |call| {
            paged_attention(qkv.clone(), &layers[call % copies], &metadata, options)
        });
    }

    /// The choice of tokens from logits in the spread of a model's, one way for all rows.
    fn sampling(&self, model: &Model, rows: usize) {
        let (tokens, bytes) = (model.vocabulary, rows * model.vocabulary * self.dtype.size());
        let copies = (ROTATED_BYTES / bytes).clamp(1, 16);
        let logits: Vec<Tensor<2>> = (0..copies)
            .map(|copy| {
                let values = Seeded::new(copy as u64).tensor::<2>([rows, tokens], &self.device);
                (values.powi_scalar(3) * 25.0).cast(self.dtype)
            })
            .collect();
        let row = |temperature| RowParams { temperature, ..RowParams::greedy(0) };
        for (name, row) in [
            ("greedy", row(0.0)),
            ("temperature", row(1.0)),
            ("top_p 0.9", RowParams { top_p: 0.9, ..row(1.0) }),
            ("top_k 20, top_p 0.95", RowParams { top_k: Some(20), top_p: 0.95, ..row(0.7) }),
            ("top_k 1000, top_p 0.95", RowParams { top_k: Some(1000), top_p: 0.95, ..row(0.7) }),
            ("greedy, 20 logprobs", RowParams { logprobs: Some(20), ..row(0.0) }),
        ] {
            let at = |index: usize| RowParams { logits_row: index as u32, seed: index as u64, ..row.clone() };
            let all: Vec<RowParams> = (0..rows).map(at).collect();
            let plan = SamplePlan::new(&all, rows, tokens);
            let words = int_tensor(plan.words.clone(), [plan.words.len()], &self.device);
            let label = format!("{:13} {rows:4} {:34}", model.name, format!("sample {name}"));
            let logits = logits.clone();
            self.time("sample", label, (bytes, 0), copies.max(4), move |call| {
                let logits = &logits[call % copies];
                drop(sample(logits, &words, plan.options));
                logits.clone()
            });
        }
    }

    fn layer(&self, heads: HeadLayout, case: &AttentionCase, dtype: DType) -> KvLayer {
        KvLayer::with_dtype(case.num_blocks, BLOCK_SIZE, heads, (&self.device, dtype))
    }

    /// Times `calls` calls of `operation` together. `bytes` and `operations` are those of one call.
    fn time(
        &self,
        name: &str,
        label: String,
        (bytes, operations): (usize, usize),
        calls: usize,
        mut operation: impl FnMut(usize) -> Tensor<2> + Send + 'static,
    ) {
        if !self.kept.is_empty() && !self.kept.iter().any(|kept| kept == name) {
            return;
        }
        let mut all = move || (0..calls).map(&mut operation).last().expect("at least one call");
        let eager = median_us(&self.device, || drop(all())) / calls as f64;
        let replays = CapturedGraph::record(&GraphMemory::default(), &self.device, all).map(|graph| {
            let replay = || drop(graph.replay());
            [median_us(&self.device, replay), median_host_us(&self.device, replay)].map(|us| us / calls as f64)
        });
        let [replayed, host] = [0, 1].map(|which| replays.map(|times| times[which]));
        let rate = |count: usize, unit: f64| count as f64 / (replayed.unwrap_or(eager) * 1e-6) / unit;
        let (gigabytes, teraflops) = (rate(bytes, 1e9), rate(operations, 1e12));
        let [replayed, host] = [replayed, host].map(|us| us.map_or_else(|| "-".to_owned(), |us| format!("{us:.2}")));
        println!("{label} {eager:9.2} {replayed:>9} {host:>9} {gigabytes:8.0} {teraflops:8.1}");
    }
}

/// The median time that a call takes when the device has nothing to do.
fn median_host_us(device: &Device, mut call: impl FnMut()) -> f64 {
    let timed = || {
        wait(device);
        let started = Instant::now();
        call();
        started.elapsed().as_secs_f64() * 1e6
    };
    let mut times: Vec<f64> = std::iter::repeat_with(timed).take(REPEATS).collect();
    times.sort_by(f64::total_cmp);
    times[REPEATS / 2]
}

fn wait(device: &Device) {
    device.sync().unwrap_or_else(|error| panic!("the device failed: {error:?}"));
}

/// The median of five timings of [`REPEATS`] calls and a wait, per call.
fn median_us(device: &Device, mut call: impl FnMut()) -> f64 {
    call();
    wait(device);
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let started = Instant::now();
            (0..REPEATS).for_each(|_| call());
            wait(device);
            started.elapsed().as_secs_f64() * 1e6 / REPEATS as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[2]
}
