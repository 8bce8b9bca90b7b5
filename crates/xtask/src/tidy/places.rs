//! Names of places that are true on one machine only: home folders, and the hosts that packages come from.

use super::Finding;
use super::tree::Tree;

/// Beginnings of home folders. Put together here so that this file does not hold them, as below.
const HOMES: [&str; 3] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

/// Hosts of package registries: tools know them, and a mirror must be able to stand in.
const HOSTS: [&str; 6] = [
    concat!("static.crates", ".io"),
    concat!("index.crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
    concat!("proxy.go", "lang.org"),
];

/// The only source of packages in the lock file, whichever mirror they were fetched from.
const LOCK_SOURCE: &str = concat!("registry+https://github.com/rust-lang/crates", ".io-index");

pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        for (number, line) in (1..).zip(file.text.as_deref().unwrap_or_default().lines()) {
            if let Some(host) = HOSTS.iter().find(|host| line.contains(*host)) {
                findings.push(Finding::Error(format!("{}:{number}: names the host {host}", file.path)));
            }
            if HOMES.iter().any(|home| names_home(line, home)) {
                findings.push(Finding::Error(format!("{}:{number}: names somebody's home folder", file.path)));
            }
            if file.path.ends_with("Cargo.lock") && is_foreign_source(line) {
                findings.push(Finding::Error(format!("{}:{number}: {line}: a source of its own", file.path)));
            }
        }
    }
    findings
}

/// Whether a path in this line begins with `home`; the same word further inside a path or a URL is another folder.
fn names_home(line: &str, home: &str) -> bool {
    line.match_indices(home).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || "/.-_~}$".contains(before))
    })
}

fn is_foreign_source(line: &str) -> bool {
    line.strip_prefix("source = \"").is_some_and(|source| source.trim_end_matches('"') != LOCK_SOURCE)
}

#[cfg(test)]
mod tests {
    use super::super::errors;
    use super::*;

    #[test]
    fn home_folders_are_found_where_a_path_begins() {
        let home = HOMES[0];
        let tree = Tree::of(&[("a.md", &format!("see {home}me/x")), ("b.md", &format!("https://example.com{home}x"))]);
        assert_eq!(errors(check(&tree)), ["a.md:1: names somebody's home folder"]);
    }

    #[test]
    fn registries_are_not_named() {
        let tree = Tree::of(&[("a.sh", &format!("curl https://{}/simple", HOSTS[2]))]);
        assert_eq!(errors(check(&tree)), [format!("a.sh:1: names the host {}", HOSTS[2])]);
    }

    #[test]
    fn the_lock_file_knows_one_source() {
        let good = format!("source = \"{LOCK_SOURCE}\"");
        let tree = Tree::of(&[("Cargo.lock", &format!("{good}\nsource = \"git+https://example.com/x\""))]);
        assert_eq!(errors(check(&tree)).len(), 1);
    }
}
