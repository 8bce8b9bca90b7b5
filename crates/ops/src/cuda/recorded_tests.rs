//! What a recorded step promises: kernels that start before the one before them has ended compute what they compute in order.

use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device, Tensor};

use super::attention_tests::{HIDDEN, filled_with, options, projection};
use super::tests::{floats, for_both_dtypes, pair};
use crate::e4m3::E4M3;
use crate::testing::{AttentionCase, Seeded, assert_close, moved, reference_device};
use crate::{
    CapturedGraph, GraphMemory, HeadLayout, Projection, QkvOptions, QkvProjection, RopeTable, RowNorm, Stream, Weight,
    gather_rows, project_onto, self_attention,
};

/// Query heads, KV heads, a head's elements, and whether heads are normalised.
const LAYOUTS: [(usize, usize, usize, bool); 4] =
    [(9, 3, 64, false), (16, 8, 128, true), (8, 2, 128, false), (8, 1, 64, true)];

fn qkv_options((num_heads, num_kv_heads, head_dim, head_norm): (usize, usize, usize, bool)) -> QkvOptions {
    let heads = HeadLayout { num_heads, num_kv_heads, head_dim };
    QkvOptions { heads, rotary_dim: head_dim, norm_eps: head_norm.then_some(1e-6) }
}

/// Several layers: every kernel starts while the one before it runs.
#[test]
fn a_recorded_chain_of_layers_gives_the_bits_of_the_same_calls_for_any_input() {
    for_both_dtypes(|device, dtype, _| {
        for (layout, cache) in LAYOUTS.iter().flat_map(|layout| [(*layout, dtype), (*layout, E4M3)]) {
            for contexts in [&[600][..], &[17, 900, 1, 300, 2000], &[130; 33]] {
                check_chain(qkv_options(layout), (device, dtype), cache, contexts);
            }
        }
    });
}

/// One layer's weights.
#[derive(Clone)]
struct Layer {
    qkv: Weight,
    output: Weight,
    norm: Tensor<1>,
    head_norms: [Tensor<1>; 2],
}

fn check_chain(options: QkvOptions, (device, dtype): (&Device, DType), cache: DType, contexts: &[usize]) {
    let (mut seeded, heads) = (Seeded::new(61), options.heads);
    let norm = floats(&mut seeded, [HIDDEN], device).1; // of every layer
    let layers: Vec<Layer> = (0..6)
        .map(|_| Layer {
            qkv: projection(&mut seeded, heads, (device, dtype)),
            output: Weight::dense(pair(&mut seeded, [HIDDEN, heads.output_len()], (device, dtype)).1 * 0.05),
            norm: norm.clone(),
            head_norms: [0, 1].map(|_| floats(&mut seeded, [heads.head_dim], device).1),
        })
        .collect();
    let table = RopeTable(moved(&seeded.tensor([2000, heads.head_dim], &reference_device(device)), device));
    let sequences: Vec<(usize, usize)> = contexts.iter().map(|&context| (1, context)).collect();
    let case = AttentionCase::new(&sequences, 16, &mut seeded, device);
    let [_, past] = filled_with(&mut seeded, &case, heads, (device, dtype), cache);
    let cache = Arc::new(Mutex::new(past));
    let (metadata, attention) = (case.metadata(device), self::options(heads, 16));
    let step = move |x: Tensor<2>| {
        let stream = layers.iter().fold(Stream::from(x), |hidden, layer| {
            let norm = Some(RowNorm { weight: &layer.norm, bias: None, eps: 1e-5 });
            let [query_norm, key_norm] = &layer.head_norms;
            let qkv = QkvProjection {
                projection: Projection { norm, weight: &layer.qkv, bias: None },
                head_norms: options.norm_eps.map(|_| (query_norm, key_norm)),
                rope: Some(&table),
                options,
            };
            // All layers write the same place of the same cache, one after the other.
            let attended = self_attention(
                hidden.clone(),
                qkv,
                &metadata,
                (&mut cache.lock().expect("no step panicked"), attention),
            );
            let output = Projection { norm: None, weight: &layer.output, bias: None };
            project_onto(hidden.into_rows(), attended, output, norm)
        });
        stream.into_rows()
    };
    let count = contexts.len();
    let (_, rows) = pair(&mut seeded, [50, HIDDEN], (device, dtype));
    let memory = GraphMemory::default();
    let recordings = [0, 1].map(|_| {
        let ids = crate::int_tensor(vec![0; count], [count], device);
        let (recorded_ids, recorded_rows, recorded_step) = (ids.clone(), rows.clone(), step.clone());
        let graph =
            CapturedGraph::record(&memory, device, move || recorded_step(gather_rows(&recorded_rows, &recorded_ids)));
        (ids, graph.expect("every operation can be recorded"))
    });
    for replay in 0..20 {
        let chosen =
            [7, 11].map(|factor| (0..count as i32).map(|row| (replay * factor + row) % 50).collect::<Vec<i32>>());
        for ((ids, _), chosen) in recordings.iter().zip(&chosen) {
            drop(crate::overwrite(ids.clone(), chosen.clone()));
        }
        // They share their memory, but the one recorded later leaves the other's result alone.
        let got = recordings.each_ref().map(|(_, graph)| graph.replay().expect("the device works"));
        for (got, chosen) in got.into_iter().zip(chosen) {
            assert_close(got, step(gather_rows(&rows, &crate::int_tensor(chosen, [count], device))), 0.0);
        }
    }
}
