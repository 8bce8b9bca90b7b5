//! Which crate may depend on which: the rooms of ARCHITECTURE.md as a table.

use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use super::Finding;

/// A crate of this repository and the ones it may use, by their names without `firebrick-`.
const EDGES: [(&str, &[&str]); 9] = [
    ("checkpoint", &[]),
    ("engine", &[]),
    ("ops", &[]),
    ("text", &[]),
    ("model", &["checkpoint", "ops"]),
    ("executor", &["checkpoint", "engine", "model", "ops"]),
    ("server", &["engine", "text"]),
    ("firebrick", &["checkpoint", "engine", "executor", "model", "ops", "server", "text"]),
    ("xtask", &[]),
];

/// Packages from outside that only some crates may know; a name ending in `*` stands for all that begin so.
const RESERVED: [(&str, &[&str]); 9] = [
    ("burn", &["ops", "model", "executor", "firebrick"]),
    ("burn-*", &["ops"]),
    ("cubecl*", &["ops"]),
    ("cudarc", &["ops"]),
    ("wgpu*", &["ops"]),
    ("tokio*", &["server", "firebrick"]),
    ("axum*", &["server", "firebrick"]),
    ("hyper*", &["server", "firebrick"]),
    ("tower*", &["server", "firebrick"]),
];

/// A package of the workspace, as cargo describes it.
#[derive(Debug, Deserialize)]
pub struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// Asks cargo for the packages of a workspace; reads the manifests only.
pub fn packages(root: &Path) -> Result<Vec<Package>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    parse(&output.stdout)
}

fn parse(json: &[u8]) -> Result<Vec<Package>, String> {
    let metadata: Metadata =
        serde_json::from_slice(json).map_err(|error| format!("cargo metadata is not understood: {error}"))?;
    Ok(metadata.packages)
}

/// Compares every dependency, also of tests and build scripts, with the tables.
pub fn check(packages: &[Package]) -> Vec<Finding> {
    packages.iter().flat_map(check_package).collect()
}

fn check_package(package: &Package) -> Vec<Finding> {
    let name = short(&package.name);
    let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
        let text = format!("{}: is not in the table of crates of crates/xtask/src/tidy/edges.rs", package.name);
        return vec![Finding::Error(text)];
    };
    let mut findings = Vec::new();
    for dependency in &package.dependencies {
        let target = short(&dependency.name);
        let is_ours = EDGES.iter().any(|(crate_name, _)| *crate_name == target);
        if is_ours && !allowed.contains(&target) {
            findings.push(Finding::Error(format!("{name}: may not depend on {target}")));
        }
        // The most exact row decides: `burn` is not `burn-*`.
        let row = RESERVED.iter().find(|(pattern, _)| matches(pattern, &dependency.name));
        if row.is_some_and(|(_, crates)| !crates.contains(&name)) {
            findings.push(Finding::Error(format!("{name}: may not depend on {}", dependency.name)));
        }
    }
    findings
}

fn short(name: &str) -> &str {
    name.strip_prefix("firebrick-").unwrap_or(name)
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependencies: Vec<_> = dependencies.iter().map(|name| serde_json::json!({ "name": name })).collect();
        let json = serde_json::json!({ "packages": [{ "name": name, "dependencies": dependencies }] });
        parse(json.to_string().as_bytes()).expect("it has the fields").remove(0)
    }

    fn found(name: &str, dependencies: &[&str]) -> Vec<String> {
        errors(check(&[package(name, dependencies)]))
    }

    #[test]
    fn edges_of_the_table_are_allowed() {
        assert!(found("firebrick-executor", &["firebrick-engine", "firebrick-model", "burn", "rayon"]).is_empty());
        assert!(found("firebrick-server", &["firebrick-engine", "firebrick-text", "tokio", "axum"]).is_empty());
        assert!(found("firebrick", &["firebrick-ops", "firebrick-server", "tokio", "burn"]).is_empty());
    }

    #[test]
    fn other_edges_between_crates_are_refused() {
        assert_eq!(found("firebrick-server", &["firebrick-model"]), ["server: may not depend on model"]);
        assert_eq!(found("firebrick-engine", &["firebrick-text"]), ["engine: may not depend on text"]);
        assert_eq!(found("firebrick-ops", &["firebrick"]), ["ops: may not depend on firebrick"]);
    }

    #[test]
    fn tensors_backends_and_sockets_stay_in_their_rooms() {
        for name in ["engine", "text", "checkpoint", "server"] {
            assert_eq!(found(&format!("firebrick-{name}"), &["burn"]), [format!("{name}: may not depend on burn")]);
        }
        for backend in ["cubecl", "cubecl-runtime", "cudarc", "wgpu", "burn-flex", "burn-cubecl"] {
            assert!(found("firebrick-ops", &[backend]).is_empty());
            assert_eq!(found("firebrick-model", &[backend]), [format!("model: may not depend on {backend}")]);
        }
        assert_eq!(found("firebrick-engine", &["tokio"]), ["engine: may not depend on tokio"]);
    }

    #[test]
    fn an_unknown_crate_is_a_decision_to_be_made() {
        assert_eq!(found("firebrick-extra", &[]).len(), 1);
    }

    #[test]
    fn cargo_describes_a_workspace() {
        let folder = std::env::temp_dir().join(format!("firebrick-tidy-{}", std::process::id()));
        let manifest = "[package]\nname = \"firebrick-server\"\nversion = \"0.1.0\"\n[dependencies]\nburn = \"1\"\n";
        std::fs::create_dir_all(folder.join("src")).expect("a temporary folder");
        std::fs::write(folder.join("src/lib.rs"), "").expect("a file in it");
        std::fs::write(folder.join("Cargo.toml"), manifest).expect("a file in it");
        let packages = packages(&folder).expect("cargo reads the manifest");
        std::fs::remove_dir_all(&folder).expect("it is ours");
        assert_eq!(errors(check(&packages)), ["server: may not depend on burn"]);
    }
}
