//! Puts the built page into the program, where FIREBRICK_UI names its folder (`scripts/build-web.sh` builds it). Models
//! beside the page stay out: they would make the program as large as they are.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FIREBRICK_UI");
    let mut entries = String::new();
    if let Some(folder) = env::var_os("FIREBRICK_UI").filter(|folder| !folder.is_empty()) {
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join(folder);
        println!("cargo::rerun-if-changed={}", root.display());
        assert!(root.join("index.html").exists(), "FIREBRICK_UI: {} holds no index.html", root.display());
        collect(&root, "", &mut entries);
    }
    let code = format!(
        "/// Paths and contents of the page's files; none where it was not built in.\nconst FILES: &[(&str, &[u8])] = &[{entries}];\n"
    );
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("page_files.rs");
    fs::write(target, code).expect("the folder for build results can be written");
}

fn collect(folder: &Path, prefix: &str, entries: &mut String) {
    let mut found: Vec<_> = fs::read_dir(folder).expect("the page can be read").flatten().collect();
    found.sort_by_key(fs::DirEntry::file_name);
    for entry in found {
        let name = entry.file_name().into_string().expect("names of a built page are plain");
        let path = entry.path();
        match path.is_dir() {
            true if prefix.is_empty() && name == "models" => {}
            true => collect(&path, &format!("{prefix}{name}/"), entries),
            false => {
                writeln!(entries, "({:?}, include_bytes!({path:?})),", format!("{prefix}{name}")).expect("text grows")
            }
        }
    }
}
