//! The files of the repository: everything that `.gitignore` does not name.

use std::fs;
use std::path::Path;

/// The files, sorted by path.
pub struct Tree {
    /// Text files; others are kept by path alone, with no text.
    pub files: Vec<File>,
}

/// One file.
pub struct File {
    /// Path from the repository's root, with `/` on every system.
    pub path: String,
    /// Its text, `None` when it is not UTF-8.
    pub text: Option<String>,
}

impl File {
    /// The text of a Rust file.
    pub fn rust(&self) -> Option<&str> {
        self.text.as_deref().filter(|_| self.path.ends_with(".rs"))
    }

    /// The file's name without its ending.
    pub fn stem(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name.split_once('.').map_or(name, |(stem, _)| stem)
    }

    /// Whether the file holds only tests, benchmarks or examples.
    pub fn is_test(&self) -> bool {
        self.path.split('/').any(|part| matches!(part, "tests" | "benches" | "tests.rs"))
    }
}

impl Tree {
    /// Reads all files below a folder.
    pub fn read(root: &Path) -> Result<Self, String> {
        let ignored = Ignored::parse(&fs::read_to_string(root.join(".gitignore")).unwrap_or_default());
        let mut files = Vec::new();
        read_folder(root, "", &ignored, &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path)?.text.as_deref()
    }

    /// A made-up repository.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File { path: path.to_string(), text: Some(text.to_string()) };
        Self { files: files.iter().map(file).collect() }
    }
}

fn read_folder(folder: &Path, prefix: &str, ignored: &Ignored, files: &mut Vec<File>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{} cannot be read: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        if ignored.covers(&path, &name) {
            continue;
        }
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            read_folder(&entry.path(), &path, ignored, files)?;
        } else if kind.is_file() {
            let bytes = fs::read(entry.path()).map_err(failed)?;
            files.push(File { path, text: String::from_utf8(bytes).ok() });
        }
    }
    Ok(())
}

/// The three forms of `.gitignore` lines that this repository uses: `/path`, `name/` and `*.ending`.
struct Ignored {
    paths: Vec<String>,
    names: Vec<String>,
    endings: Vec<String>,
}

impl Ignored {
    fn parse(text: &str) -> Self {
        let mut ignored = Self { paths: Vec::new(), names: vec![".git".into()], endings: Vec::new() };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(path) = line.strip_prefix('/') {
                ignored.paths.push(path.trim_end_matches('/').into());
            } else if let Some(ending) = line.strip_prefix('*') {
                ignored.endings.push(ending.into());
            } else {
                ignored.names.push(line.trim_end_matches('/').into());
            }
        }
        ignored
    }

    fn covers(&self, path: &str, name: &str) -> bool {
        self.paths.iter().any(|ignored| ignored == path)
            || self.names.iter().any(|ignored| ignored == name)
            || self.endings.iter().any(|ending| name.ends_with(ending.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_ignores_is_not_read() {
        let ignored = Ignored::parse("/target\n# comment\n__pycache__/\n*.pyc\n");
        assert!(ignored.covers("target", "target"));
        assert!(!ignored.covers("docs/target", "target"));
        assert!(ignored.covers("scripts/__pycache__", "__pycache__"));
        assert!(ignored.covers("scripts/a.pyc", "a.pyc"));
        assert!(ignored.covers(".git", ".git"));
    }

    #[test]
    fn a_folder_is_read_with_its_subfolders() {
        let tree = Tree::read(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("the package's folder is there");
        assert!(tree.text("src/tidy/tree.rs").is_some_and(|text| text.contains("a_folder_is_read")));
    }
}
