//! Every operation of the table in `backend.rs` has all its sources, and every kernel source belongs to an operation.

use super::Finding;
use super::rust_source::without_literals;
use super::tree::{File, Tree};

const TABLE: &str = "crates/ops/src/backend.rs";

/// Operations that share the files of another one: variants of it, or it put together with what comes before and after it.
const VARIANTS: [(&str, &str); 8] = [
    ("add_rms_norm", "rms_norm"),
    ("gated_activation", "activation"),
    ("linear_packed", "linear"),
    ("gather_packed_rows", "gather_rows"),
    ("project", "linear"),
    ("project_packed", "linear"),
    ("project_onto", "linear"),
    ("self_attention", "paged_attention"),
];

/// A place where an operation has a file: what it is, the folder and the ending.
const SOURCES: [(&str, &str, &str); 6] = [
    ("contract and reference", "crates/ops/src", ".rs"),
    ("CPU kernel", "crates/ops/src/cpu", ".rs"),
    ("wgpu launch", "crates/ops/src/wgpu", ".rs"),
    ("shader", "shaders", ".wgsl"),
    ("CUDA launch", "crates/ops/src/cuda", ".rs"),
    ("CUDA kernel", "kernels", ".cu"),
];

pub fn check(tree: &Tree) -> Vec<Finding> {
    let Some(table) = tree.text(TABLE) else {
        return vec![Finding::Error(format!("{TABLE}: the table of operations is missing"))];
    };
    let ops = operations(table);
    let mut findings = Vec::new();
    for op in &ops {
        for (what, folder, ending) in SOURCES {
            if !tree.files.iter().any(|file| is_source(file, op, folder, ending)) {
                findings.push(Finding::Error(format!("{TABLE}: `{op}` has no {what}: {folder}/{op}{ending}")));
            }
        }
        let contract = [format!("crates/ops/src/{op}.rs"), format!("crates/ops/src/attention/{op}.rs")];
        let text = contract.iter().find_map(|path| tree.text(path));
        if text.is_some_and(|text| !text.contains("pub fn reference(")) {
            findings.push(Finding::Error(format!("{TABLE}: `{op}` has no `reference` beside its contract")));
        }
    }
    findings.extend(orphans(tree, &ops));
    findings
}

/// The methods of the table's trait, variants left out.
fn operations(table: &str) -> Vec<String> {
    let code = without_literals(table);
    // Functions before the trait belong to the types of its arguments.
    let code = &code[code.find("pub trait ").unwrap_or(0)..];
    let names = code.match_indices("fn ").map(|(at, _)| {
        let name = code[at + 3..].split('(').next().unwrap_or_default();
        VARIANTS.iter().find(|(variant, _)| *variant == name).map_or(name, |(_, op)| *op).to_string()
    });
    let mut ops: Vec<String> = names.collect();
    ops.sort();
    ops.dedup();
    ops
}

/// `folder/op.ending`, `folder/attention/op.ending`, or one of several kernels: `folder/op/x.ending`,
/// `folder/op_x.ending`.
fn is_source(file: &File, op: &str, folder: &str, ending: &str) -> bool {
    let Some(path) = file.path.strip_prefix(folder).and_then(|path| path.strip_prefix('/')) else { return false };
    let Some(path) = path.strip_suffix(ending) else { return false };
    let path = path.strip_prefix("attention/").unwrap_or(path);
    path == op || path.strip_prefix(op).is_some_and(|rest| rest.starts_with('/') || rest.starts_with('_'))
}

/// Kernel sources that no operation uses.
fn orphans(tree: &Tree, ops: &[String]) -> Vec<Finding> {
    let kernels = [("shaders", ".wgsl"), ("kernels", ".cu")];
    let mut findings = Vec::new();
    for (folder, ending) in kernels {
        let inside = |file: &&File| file.path.starts_with(&format!("{folder}/")) && file.path.ends_with(ending);
        for file in tree.files.iter().filter(inside) {
            let is_shared = file.path.starts_with("shaders/common/");
            if !is_shared && !ops.iter().any(|op| is_source(file, op, folder, ending)) {
                findings.push(Finding::Error(format!("{}: belongs to no operation of {TABLE}", file.path)));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    const ROW: &str = "pub trait FusedOps {\n    /// See.\n    fn rms_norm(x: T) -> T;\n    fn add_rms_norm(x: T);\n}";

    fn complete() -> Vec<(&'static str, &'static str)> {
        vec![
            (TABLE, ROW),
            ("crates/ops/src/rms_norm.rs", "pub fn reference(x: T) {}"),
            ("crates/ops/src/cpu/rms_norm.rs", ""),
            ("crates/ops/src/wgpu/rms_norm.rs", ""),
            ("shaders/rms_norm/few_rows.wgsl", ""),
            ("shaders/common/sum.wgsl", ""),
            ("crates/ops/src/cuda/rms_norm.rs", ""),
            ("kernels/rms_norm.cu", ""),
        ]
    }

    #[test]
    fn an_operation_with_all_its_sources_is_complete() {
        assert_eq!(check(&Tree::of(&complete())), []);
    }

    #[test]
    fn every_missing_source_is_named() {
        for missing in 1..complete().len() {
            let mut files = complete();
            let (path, _) = files.remove(missing);
            let expected = usize::from(!path.starts_with("shaders/common/"));
            assert_eq!(errors(check(&Tree::of(&files))).len(), expected, "{path}");
        }
    }

    #[test]
    fn a_contract_comes_with_its_reference() {
        let mut files = complete();
        files[1].1 = "pub fn rms_norm(x: T) {}";
        let found = errors(check(&Tree::of(&files)));
        assert_eq!(found, [format!("{TABLE}: `rms_norm` has no `reference` beside its contract")]);
    }

    #[test]
    fn a_kernel_without_an_operation_is_found() {
        let mut files = complete();
        files.push(("kernels/softmax.cu", ""));
        let found = errors(check(&Tree::of(&files)));
        assert_eq!(found, [format!("kernels/softmax.cu: belongs to no operation of {TABLE}")]);
    }
}
