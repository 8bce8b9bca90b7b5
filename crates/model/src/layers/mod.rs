//! The parts that architectures share.

mod attention;
mod embedding;
mod linear;
mod mlp;
mod norm;

pub use attention::Attention;
pub use embedding::{LmHead, TokenEmbedding};
pub use linear::Linear;
pub use mlp::Mlp;
pub(crate) use mlp::activation_of;
pub use norm::Norm;
