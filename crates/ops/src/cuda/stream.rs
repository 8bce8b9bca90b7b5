//! Burn's CUDA stream. The one place that reaches into the runtime for it.

use cubecl_environment::stream::StreamId;
use cubecl_server::stream::WriteScoped;
use cudarc::driver::sys::CUstream;

use super::launch::CudaServer;

/// The CUDA stream on which the runtime enqueues the work of `stream`; `None` before its first work.
///
/// The runtime has no accessor meant for this, but its failure bookkeeping hands out the streams it writes through.
pub(super) fn raw(server: &mut CudaServer, stream: StreamId) -> Option<CUstream> {
    server.write_streams().try_stream_mut(&stream).map(|stream| stream.sys)
}
