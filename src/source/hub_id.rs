//! Names of models on the hub: `org/name`, `org/name@revision`, `org/name/file.gguf`.

/// A model on the hub. Its parts are plain names: they become paths in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`, or the single word of an old model.
    pub repository: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// The one file wanted, for repositories of several GGUF files.
    pub file: Option<String>,
}

impl HubId {
    /// Reads a name; the error says that it is neither a path nor a hub id.
    pub fn parse(source: &str, revision: Option<&str>) -> Result<Self, String> {
        let missing = || {
            if source.starts_with(['.', '/', '~', '\\']) || source.to_ascii_lowercase().ends_with(".gguf") {
                return format!("no file or folder `{source}`; check the path");
            }
            format!(
                "no file or folder `{source}`, and it is not a Hugging Face id either; pass a folder, a .gguf file or \
                 an id such as HuggingFaceTB/SmolLM2-135M-Instruct"
            )
        };
        let (name, at) = source.split_once('@').map_or((source, None), |(name, at)| (name, Some(at)));
        let parts: Vec<&str> = name.split('/').collect();
        let revision = revision.or(at).unwrap_or("main");
        if !parts.iter().all(|part| is_plain(part)) || !revision.split('/').all(is_plain) {
            return Err(missing());
        }
        let is_gguf = |part: &str| part.to_ascii_lowercase().ends_with(".gguf");
        let (repository, file) = match parts[..] {
            [name] if !is_gguf(name) => (name.to_owned(), None),
            [organisation, name] if !is_gguf(name) => (format!("{organisation}/{name}"), None),
            [organisation, name, file] if is_gguf(file) => (format!("{organisation}/{name}"), Some(file.to_owned())),
            _ => return Err(missing()),
        };
        Ok(Self { repository, revision: revision.to_owned(), file })
    }

    /// The name of the model's folder in the cache.
    pub(crate) fn folder_name(&self) -> String {
        format!("models--{}", self.repository.replace('/', "--"))
    }
}

/// A name that cannot leave its folder.
pub(crate) fn is_plain(name: &str) -> bool {
    const BYTES_MAX: usize = 128;
    let characters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    !name.is_empty() && name.len() <= BYTES_MAX && characters && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_an_organisation_a_name_and_perhaps_more() {
        let id = HubId::parse("facebook/opt-125m@refs/pr/1", None).expect("an id");
        assert_eq!((id.repository.as_str(), id.revision.as_str(), id.file), ("facebook/opt-125m", "refs/pr/1", None));
        let id = HubId::parse("org/name/x.Q4_K_M.gguf", Some("v1")).expect("an id");
        assert_eq!((id.revision.as_str(), id.file.as_deref()), ("v1", Some("x.Q4_K_M.gguf")));
        assert_eq!(HubId::parse("gpt2", None).expect("an id").repository, "gpt2");
    }

    #[test]
    fn nothing_that_could_leave_the_cache_is_an_id() {
        for name in ["../x", "a/..", "/a/b", "a//b", "a/b@../../c", "a b/c", "a/b/c", "", ".hidden/x", "a/b@"] {
            assert!(HubId::parse(name, None).is_err(), "{name}");
        }
    }
}
