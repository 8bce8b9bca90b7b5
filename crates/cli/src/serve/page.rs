//! `--ui`: the page out of this program, or out of a folder.

use std::path::Path;

use firebrick_server::PageFiles;

use crate::failure::Failure;

// `FILES`: what `build.rs` found in the folder of FIREBRICK_UI.
include!(concat!(env!("OUT_DIR"), "/page_files.rs"));

const ADVICE: &str = "scripts/build-web.sh builds it in web-demo/page/dist; then either name that folder, \
                      --ui=web-demo/page/dist, or build the program with it, \
                      FIREBRICK_UI=web-demo/page/dist cargo build --release";

/// The page in a folder, or the one in this program.
pub fn find(folder: Option<&Path>) -> Result<PageFiles, Failure> {
    if let Some(folder) = folder {
        return PageFiles::from_folder(folder).map_err(|error| Failure::Usage(format!("--ui: {error}; {ADVICE}")));
    }
    if FILES.is_empty() {
        return Err(Failure::Usage(format!("--ui: this program was built without the page; {ADVICE}")));
    }
    Ok(PageFiles::embedded(FILES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_not_there_is_refused_with_what_to_do() {
        let refused = find(Some(Path::new("/nowhere"))).expect_err("refused").to_string();
        assert!(refused.contains("/nowhere") && refused.contains("scripts/build-web.sh"), "{refused}");
        match find(None) {
            Ok(_) => assert!(FILES.iter().any(|(path, _)| *path == "index.html")),
            Err(refusal) => assert!(refusal.to_string().contains("FIREBRICK_UI"), "{refusal}"),
        }
    }
}
