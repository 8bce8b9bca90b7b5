//! Compiles kernel sources with NVRTC, and keeps the results on disk, so that a machine compiles each source once; or
//! finds what was compiled elsewhere, for machines that have no NVRTC.

use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::result as nvrtc;
use cudarc::nvrtc::sys;

use super::kernel::Module;

/// The GPU that code is compiled for, by compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub major: u32,
    pub minor: u32,
    /// The GPU is newer: its driver translates portable code.
    is_older: bool,
}

impl Target {
    /// Machine code for cards of this compute capability.
    pub(super) fn exactly(capability: u32) -> Self {
        Self::of(capability, capability)
    }

    /// Code for cards of one compute capability (10 · major + minor) on a card of the other.
    pub(super) fn of(capability: u32, of_device: u32) -> Self {
        Self { major: capability / 10, minor: capability % 10, is_older: capability < of_device }
    }

    /// The compiler's name for it. Hopper's own instructions come with the suffix.
    pub(super) fn architecture(self) -> String {
        let kind = if self.is_older { "compute" } else { "sm" };
        let suffix = if !self.is_older && (self.major, self.minor) == (9, 0) { "a" } else { "" };
        format!("{kind}_{}{}{suffix}", self.major, self.minor)
    }
}

/// The folder with kernels that were [built ahead](build).
static BUILT_AHEAD: OnceLock<PathBuf> = OnceLock::new();

/// Looks for kernels in this folder before compiling any. The first call of a process decides.
pub(crate) fn use_kernels_in(folder: &Path) {
    BUILT_AHEAD.get_or_init(|| folder.to_owned());
}

/// The folder with kernels that were built ahead, if there is one.
pub(super) fn built_ahead() -> Option<&'static Path> {
    BUILT_AHEAD.get().map(PathBuf::as_path)
}

/// Whether NVRTC is there.
pub(super) fn can_compile() -> bool {
    static IS_PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: the call only tries to load a library by name.
    *IS_PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

/// The machine code of `module`, if it was built ahead, or if this machine compiled it before with the same compiler.
pub(super) fn stored(module: &Module, target: Target) -> Option<Vec<u8>> {
    let name = file_name(module, target);
    let built = built_ahead().and_then(|folder| std::fs::read(folder.join(&name)).ok());
    built.or_else(|| can_compile().then(|| std::fs::read(cache_folder()?.join(&name)).ok()).flatten())
}

/// Whether there is machine code of `module`, or it cannot be kept.
pub(super) fn is_stored(module: &Module, target: Target) -> bool {
    is_built_ahead(module, target) || cache_folder().is_none_or(|folder| is_in(&folder, module, target))
}

/// Whether `module` was built ahead.
pub(super) fn is_built_ahead(module: &Module, target: Target) -> bool {
    built_ahead().is_some_and(|folder| is_in(folder, module, target))
}

fn is_in(folder: &Path, module: &Module, target: Target) -> bool {
    folder.join(file_name(module, target)).is_file()
}

/// Why a kernel that nobody has compiled cannot be run: the one line that an operator needs.
pub(super) fn not_built(module: &Module, target: Target) -> String {
    let place = match built_ahead() {
        Some(folder) => format!("is not among the kernels in {}", folder.display()),
        None => "was not built ahead".to_owned(),
    };
    let (name, variant, architecture) = (module.name(), module.variant(), target.architecture());
    format!(
        "kernel {name} ({variant}) for {architecture} {place}, and NVRTC, which would compile it now, cannot be loaded; \
         build it with `firebrick kernels build MODEL --arch {architecture}` and the flags of this start"
    )
}

/// Compiles `module` to machine code and keeps it; not being able to keep it is no error.
pub(super) fn compile(module: &Module, target: Target) -> Result<Vec<u8>, String> {
    let image = compile_with_nvrtc(module.name(), &module.text(), target)?;
    if let Some(folder) = cache_folder()
        && let Err(error) = write_whole(&folder, &folder.join(file_name(module, target)), &image)
    {
        tracing::debug!("compiled kernels are not kept: {}: {error}", folder.display());
    }
    Ok(image)
}

/// Compiles `module` into `folder`, for a machine that [looks there](use_kernels_in); returns the bytes of machine code.
pub(super) fn build(module: &Module, target: Target, folder: &Path) -> Result<usize, String> {
    let image = compile_with_nvrtc(module.name(), &module.text(), target)?;
    write_whole(folder, &folder.join(file_name(module, target)), &image)
        .map_err(|error| format!("cannot write into {}: {error}", folder.display()))?;
    Ok(image.len())
}

/// `${XDG_CACHE_HOME:-~/.cache}/firebrick/kernels`, with a folder for each compiler.
fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    let (major, minor) = compiler_version();
    Some(cache.join("firebrick").join("kernels").join(format!("nvrtc-{major}.{minor}")))
}

/// What machine code depends on: the source with its macros, and the architecture. The driver is not part of it: it runs
/// code for its card from any compiler that it is not older than, and a file that it refuses is compiled again.
fn file_name(module: &Module, target: Target) -> String {
    let mut hasher = DefaultHasher::new();
    module.text().hash(&mut hasher);
    format!("{}-{}-{:016x}.cubin", module.name(), target.architecture(), hasher.finish())
}

/// Another process must never see half a file.
fn write_whole(folder: &Path, path: &Path, image: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, image)?;
    std::fs::rename(&partial, path)
}

/// NVRTC's major and minor version.
pub(super) fn compiler_version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both numbers are written to live variables.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    (major, minor)
}

/// The compute capabilities that NVRTC compiles for, as 10 · major + minor.
pub(super) fn supported_targets() -> Vec<u32> {
    let mut count = 0;
    // SAFETY: the count is written to a live variable, and then as many numbers to a buffer of that length.
    let mut targets = unsafe {
        sys::nvrtcGetNumSupportedArchs(&mut count);
        let mut targets = vec![0i32; count.max(0) as usize];
        sys::nvrtcGetSupportedArchs(targets.as_mut_ptr());
        targets
    };
    targets.sort_unstable();
    targets.into_iter().map(|target| target as u32).collect()
}

fn compile_with_nvrtc(name: &str, text: &str, target: Target) -> Result<Vec<u8>, String> {
    let (source, file) = (c_string(text), c_string(&format!("{name}.cu")));
    let program = nvrtc::create_program(&source, Some(&file)).map_err(|error| format!("NVRTC: {error:?}"))?;
    let options = [format!("--gpu-architecture={}", target.architecture()), "--std=c++17".to_owned()];
    // SAFETY: the program was just created, its texts outlive it, and it is destroyed once, at the end.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options)
            .map_err(|error| format!("{name}.cu does not compile: {error:?}\n{}", log(program)))
            .and_then(|()| image(program, target).map_err(|error| format!("{name}.cu has no machine code: {error:?}")));
        let _ = nvrtc::destroy_program(program);
        compiled
    }
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("kernel sources have no zero bytes")
}

/// What the compiler said.
///
/// # Safety
/// The program must be alive.
unsafe fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: the caller's promise; the log ends with a zero byte.
    unsafe {
        let Ok(log) = nvrtc::get_program_log(program) else { return String::new() };
        CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned()
    }
}

/// The machine code of a compiled program, or the portable code, which ends with a zero byte.
///
/// # Safety
/// The program must be alive.
unsafe fn image(program: sys::nvrtcProgram, target: Target) -> Result<Vec<u8>, nvrtc::NvrtcError> {
    let mut size = 0;
    // SAFETY: the caller's promise; the code is written to a buffer of the size that was asked for.
    unsafe {
        if target.is_older {
            sys::nvrtcGetPTXSize(program, &mut size).result()?;
            let mut image = vec![0u8; size];
            sys::nvrtcGetPTX(program, image.as_mut_ptr().cast()).result()?;
            return Ok(image);
        }
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut image = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result()?;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Kernel;
    use super::super::{ACTIVATION, RMS_NORM};
    use super::*;

    fn module(element: &'static str) -> Module {
        Kernel::new(&RMS_NORM, "rms_norm").word("ELEMENT", element).module
    }

    #[test]
    fn a_file_is_named_by_what_its_code_depends_on() {
        let name = |module: &Module, capability| file_name(module, Target::exactly(capability));
        let own = name(&module("f16"), 80);
        assert!(own.starts_with("rms_norm-sm_80-") && own.ends_with(".cubin"), "{own}");
        assert_eq!(own, name(&Kernel::new(&RMS_NORM, "add_rms_norm").word("ELEMENT", "f16").module, 80));
        for other in [name(&module("bf16"), 80), name(&module("f16"), 86), name(&module("f16"), 90)] {
            assert_ne!(own, other);
        }
        assert!(name(&module("f16"), 90).starts_with("rms_norm-sm_90a-"));
        // Portable code for an older card is not that card's machine code.
        assert_ne!(own, file_name(&module("f16"), Target::of(80, 90)));
    }

    #[test]
    fn a_kernel_is_found_where_it_was_put() {
        let folder = std::env::temp_dir().join(format!("firebrick-kernels-{}", std::process::id()));
        let (built, target) = (module("f16"), Target::exactly(80));
        write_whole(&folder, &folder.join(file_name(&built, target)), b"code").expect("a temporary folder");
        assert!(is_in(&folder, &built, target) && !is_in(&folder, &module("f32"), target));
        assert!(!is_in(&folder, &built, Target::exactly(86)));
        std::fs::remove_dir_all(folder).expect("removed again");
    }

    #[test]
    fn a_missing_kernel_is_named_with_what_would_build_it() {
        let module = Kernel::new(&ACTIVATION, "activation").word("ELEMENT", "bf16").word("KIND", "SILU").module;
        let line = not_built(&module, Target::exactly(90));
        for part in ["activation (ELEMENT=bf16 KIND=SILU) for sm_90a", "kernels build MODEL --arch sm_90a", "NVRTC"] {
            assert!(line.contains(part) && !line.contains('\n'), "{line}");
        }
    }
}
