//! From the arguments to a model that is ready, with its progress on the screen.

use std::path::Path;

use firebrick::{Backend, Loaded, ModelSource, Options, Origin, REFERENCE_MODEL, SourceOptions, resolve_with};
use firebrick_checkpoint::Checkpoint;

use crate::failure::Failure;
use crate::output::size;
use crate::progress::Bars;

/// Finds a model, downloading it if need be, and says where it was found.
pub fn find(name: &str, options: &SourceOptions, bars: &Bars) -> Result<ModelSource, Failure> {
    let source = resolve_with(name, options, &mut bars.download(name))?;
    let path = source.path.display();
    match source.origin {
        Origin::Local => {}
        Origin::Cached => tracing::info!("{name} is cached in {path}"),
        Origin::Downloaded => tracing::info!("{name} was not cached; it is now, in {path}"),
        Origin::Substitute => {
            tracing::warn!(
                "the hub cannot be reached; {path} stands in for {REFERENCE_MODEL}: the same model, quantised"
            );
        }
    }
    Ok(source)
}

/// Loads a model onto its device.
pub fn load(path: &Path, options: &Options, bars: &Bars) -> Result<Loaded, Failure> {
    let bar = bars.bytes("loading", bars.are_visible().then(|| expected_bytes(path, options)).flatten());
    let loaded = Loaded::load(path, options, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    Ok(loaded?)
}

/// What the weights will take, for the bar's sake; errors show when the model is loaded.
fn expected_bytes(path: &Path, options: &Options) -> Option<u64> {
    if options.dummy_weights {
        return None;
    }
    let checkpoint = Checkpoint::open(path).ok()?;
    let dtype = options.dtype.unwrap_or(checkpoint.config().dtype);
    let dense = checkpoint.num_parameters() * dtype.size() as u64;
    let packs = options.dtype.is_none() && firebrick::chosen_backend(options).ok()? != Backend::Cuda;
    Some(checkpoint.packed_bytes(dtype).filter(|_| packs).unwrap_or(dense))
}

/// A model's size and place in one line.
pub fn summary(loaded: &Loaded) -> String {
    let report = &loaded.report;
    format!(
        "{} on {}, {}, {} of weights, up to {} tokens",
        report.plan.model,
        report.backend.name(),
        report.weights_form(),
        size(report.plan.weight_bytes),
        report.max_model_len
    )
}
