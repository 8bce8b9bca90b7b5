//! Compiles kernel sources with NVRTC, and keeps the results on disk, so that a machine compiles each source once.

use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::result as nvrtc;
use cudarc::nvrtc::sys;

/// The GPU that code is compiled for, by compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub major: u32,
    pub minor: u32,
    /// The GPU is newer: its driver translates portable code.
    is_older: bool,
}

impl Target {
    /// Code for cards of one compute capability (10 · major + minor) on a card of the other.
    pub(super) fn of(capability: u32, of_device: u32) -> Self {
        Self { major: capability / 10, minor: capability % 10, is_older: capability < of_device }
    }

    /// The compiler's name for it. Hopper's own instructions come with the suffix.
    fn architecture(self) -> String {
        let kind = if self.is_older { "compute" } else { "sm" };
        let suffix = if !self.is_older && (self.major, self.minor) == (9, 0) { "a" } else { "" };
        format!("{kind}_{}{}{suffix}", self.major, self.minor)
    }
}

/// The machine code of `text`, if this machine compiled it before with the same compiler.
pub(super) fn stored(name: &str, text: &str, target: Target) -> Option<Vec<u8>> {
    std::fs::read(path(&folder()?, name, text, target)).ok()
}

/// Compiles `text` to machine code and stores it; not being able to store it is no error.
pub(super) fn compile(name: &str, text: &str, target: Target) -> Result<Vec<u8>, String> {
    let started = std::time::Instant::now();
    let image = compile_with_nvrtc(name, text, target)?;
    tracing::info!("compiled {name}.cu for {} in {:.1} s", target.architecture(), started.elapsed().as_secs_f64());
    if let Some(folder) = folder()
        && let Err(error) = write_whole(&folder, &path(&folder, name, text, target), &image)
    {
        tracing::debug!("compiled kernels are not kept: {}: {error}", folder.display());
    }
    Ok(image)
}

/// `${XDG_CACHE_HOME:-~/.cache}/firebrick/kernels`.
fn folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("firebrick").join("kernels"))
}

fn path(folder: &Path, name: &str, text: &str, target: Target) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (text, target, compiler_version(), driver_version()).hash(&mut hasher);
    folder.join(format!("{name}-{}-{:016x}.cubin", target.architecture(), hasher.finish()))
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

/// The CUDA version of the driver, as 1000 · major + 10 · minor.
fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the number is written to a live variable.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut version) };
    version
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
