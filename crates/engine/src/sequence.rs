//! A sequence being generated, and the facts that it shares with the other choices of its request.
//!
//! There are no phases. A sequence has `num_computed_tokens` and wants to reach `len()`: prefill is a large gap, decode
//! a gap of one, a prefix hit starts with the counter advanced, and preemption sets it back to 0.

use std::ops::Range;
use std::sync::Arc;

use crate::block_table::BlockTable;
use crate::policy::ServiceOrder;
use crate::prefix_cache::{BlockKey, ChainHasher, Parent, Salt};
use crate::token_span::TokenSpan;
use crate::{
    Constraint, ConstraintState, FinishReason, NotFollowed, Progress, PromptOutput, RequestId, SampleRow,
    SamplingParams, SchedulingPolicy, SequenceId, TokenHistory, TokenId, TokenMask,
};

/// What does not change during a request's life; all its choices share it.
#[derive(Debug)]
pub(crate) struct RequestFacts {
    pub(crate) id: RequestId,
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) stops: StopTokens,
    pub(crate) constraint: Option<Constraint>,
    /// The mask of `allowed_token_ids`.
    pub(crate) allowed: Option<TokenMask>,
    pub(crate) priority: i32,
    /// Tokens, prompt and output together, at which a sequence has reached its length.
    pub(crate) max_len: u32,
    /// What the seeds of the choices derive from.
    pub(crate) seed: u64,
    /// With whom blocks are shared; `None`: with nobody.
    pub(crate) sharing: Option<Sharing>,
    pub(crate) prompt_output: Option<PromptOutput>,
}

impl RequestFacts {
    /// Whether tokens are generated; otherwise only the prompt is computed.
    pub(crate) fn generates(&self) -> bool {
        self.params.max_tokens != Some(0)
    }

    pub(crate) fn prompt_len(&self) -> u32 {
        self.prompt.len() as u32
    }
}

/// Where a request's hash chain begins.
#[derive(Debug)]
pub(crate) struct Sharing {
    pub(crate) salt: Salt,
    pub(crate) root: u128,
}

/// The tokens that end a sequence.
#[derive(Debug)]
pub(crate) struct StopTokens {
    /// End-of-sequence tokens that count, sorted.
    end_of_sequence: Vec<TokenId>,
    /// Requested stop tokens, sorted.
    requested: Vec<TokenId>,
    /// Everything that `min_tokens` makes impossible.
    suppressed: Vec<TokenId>,
}

impl StopTokens {
    pub(crate) fn new(end_of_sequence: &[TokenId], params: &SamplingParams) -> Self {
        let sorted = |mut tokens: Vec<TokenId>| {
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        Self {
            end_of_sequence: if params.ignore_eos { Vec::new() } else { sorted(end_of_sequence.to_vec()) },
            requested: sorted(params.stop_token_ids.clone()),
            suppressed: sorted([end_of_sequence, &params.stop_token_ids].concat()),
        }
    }

    /// Why this token would end a sequence.
    fn reason(&self, token: TokenId) -> Option<FinishReason> {
        if self.end_of_sequence.binary_search(&token).is_ok() {
            Some(FinishReason::Stop(None))
        } else if self.requested.binary_search(&token).is_ok() {
            Some(FinishReason::Stop(Some(token)))
        } else {
            None
        }
    }
}

/// One of a request's continuations.
///
/// ```text
/// positions  [0, num_published)     full blocks, in the prefix cache, perhaps shared; never written again
///            [.., num_computed)     ours alone
///            [num_computed, num_planned)  the work of the steps in flight
///            [num_planned, len_planned()) no keys and values yet: the work of coming steps
/// ```
///
/// The last `num_unknown` positions have no tokens yet either: steps in flight choose them.
pub(crate) struct Sequence {
    pub(crate) facts: Arc<RequestFacts>,
    pub(crate) index: u32,
    pub(crate) seed: u64,
    pub(crate) output: Vec<TokenId>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) num_computed_tokens: u32,
    /// The same once the steps in flight have run.
    pub(crate) num_planned_tokens: u32,
    /// Tokens that the steps in flight choose.
    pub(crate) num_unknown: u32,
    /// Index among the draws of the last step that had one for it.
    pub(crate) last_sample: u32,
    pub(crate) table: BlockTable,
    /// Blocks at the head of the table that are in the prefix cache.
    pub(crate) num_published: u32,
    /// Whether further full blocks may enter the prefix cache.
    pub(crate) publishing: bool,
    /// Where the positions end whose results were delivered; it never goes back.
    pub(crate) num_reported: u32,
    /// Whether it has been in a batch.
    pub(crate) started: bool,
    /// Hashes of the full blocks, each computed once.
    hashes: Vec<u128>,
    /// What may come next. It follows `output` and nothing else.
    constraint: Option<Box<dyn ConstraintState>>,
}

/// What a chosen token does to its sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// The sequence goes on.
    Open,
    /// The token is the last one.
    Last(FinishReason),
    /// The token is not taken, and the sequence cannot go on.
    Refused(FinishReason),
}

impl Sequence {
    pub(crate) fn new(facts: Arc<RequestFacts>, index: u32, block_size: u32) -> Self {
        Self {
            seed: mix_seed(facts.seed, u64::from(index)),
            publishing: facts.sharing.is_some(),
            constraint: facts.constraint.as_ref().and_then(Constraint::start),
            facts,
            index,
            output: Vec::new(),
            num_computed_tokens: 0,
            num_planned_tokens: 0,
            num_unknown: 0,
            last_sample: 0,
            table: BlockTable::new(block_size),
            num_published: 0,
            num_reported: 0,
            started: false,
            hashes: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> SequenceId {
        SequenceId { request: self.facts.id, index: self.index }
    }

    pub(crate) fn order(&self, policy: SchedulingPolicy) -> ServiceOrder {
        ServiceOrder::new(policy, self.facts.priority, self.id())
    }

    /// Tokens of the prompt and the output so far.
    pub(crate) fn len(&self) -> u32 {
        self.facts.prompt_len() + self.output.len() as u32
    }

    /// [`len`](Self::len) with the tokens that steps in flight choose.
    pub(crate) fn len_planned(&self) -> u32 {
        self.len() + self.num_unknown
    }

    /// Tokens whose keys and values no step has written or is writing.
    pub(crate) fn num_pending(&self) -> u32 {
        self.len_planned() - self.num_planned_tokens
    }

    /// Whether the token being chosen is certainly its last.
    pub(crate) fn ends_in_flight(&self) -> bool {
        self.num_unknown > 0 && self.len_planned() >= self.facts.max_len
    }

    /// Whether steps have results of its prompt to report.
    pub(crate) fn is_reporting(&self) -> bool {
        self.facts.prompt_output.is_some() && self.num_computed_tokens < self.facts.prompt_len()
    }

    /// Whether a draw needs to know the token before it.
    pub(crate) fn draws_by_tokens(&self) -> bool {
        let params = &self.facts.params;
        self.constraint.is_some() || params.needs_history() || !params.bad_words.is_empty()
    }

    /// The first position whose results are still to be delivered; beyond all positions when there is none.
    pub(crate) fn first_unreported(&self) -> u32 {
        let output = self.facts.prompt_output.filter(|_| self.index == 0);
        let wanted = output.map(|output| output.positions(self.facts.prompt_len()));
        let start = wanted.map(|wanted| wanted.start.max(self.num_reported)..wanted.end);
        start.filter(|left| !left.is_empty()).map_or(u32::MAX, |left| left.start)
    }

    /// The tokens at these positions.
    pub(crate) fn span(&self, positions: Range<u32>) -> TokenSpan<'_> {
        let prompt_len = self.facts.prompt_len();
        let split = |position: u32| (position.min(prompt_len) as usize, position.saturating_sub(prompt_len) as usize);
        let ((prompt_start, output_start), (prompt_end, output_end)) = (split(positions.start), split(positions.end));
        TokenSpan {
            prompt: &self.facts.prompt[prompt_start..prompt_end],
            output: &self.output[output_start..output_end],
        }
    }

    /// Makes [`block_key`](Self::block_key) possible for the first `num_blocks` blocks.
    pub(crate) fn hash_blocks(&mut self, num_blocks: u32, block_size: u32, hasher: ChainHasher) {
        let Some(sharing) = &self.facts.sharing else { return };
        let root = sharing.root;
        for index in self.hashes.len() as u32..num_blocks {
            let parent = self.hashes.last().copied().unwrap_or(root);
            let tokens = self.span(index * block_size..(index + 1) * block_size);
            let hash = hasher.block(parent, tokens);
            self.hashes.push(hash);
        }
    }

    /// What identifies the content of full block `index` after `parent`; `None` if the sequence shares with nobody.
    pub(crate) fn block_key(
        &self,
        index: u32,
        parent: Option<crate::BlockId>,
        block_size: u32,
    ) -> Option<BlockKey<'_>> {
        let sharing = self.facts.sharing.as_ref()?;
        let parent = match parent {
            None => Parent::Root(sharing.salt.clone()),
            Some(block) => Parent::Block(block),
        };
        let tokens = self.span(index * block_size..(index + 1) * block_size);
        Some(BlockKey { hash: self.hashes[index as usize], parent, tokens })
    }

    /// The draw of the next token.
    pub(crate) fn sample_row(&mut self, row: u32) -> SampleRow {
        let constrained = self.constraint.as_mut().map(|constraint| constraint.allowed());
        let params = &self.facts.params;
        let history = params
            .needs_history()
            .then(|| TokenHistory { prompt: self.facts.prompt.clone(), output: self.output.clone() });
        SampleRow {
            sequence: self.id(),
            row,
            params: params.clone(),
            seed: self.seed,
            position: self.len_planned(),
            suppressed: self.suppressed(self.output.len() as u32 + self.num_unknown),
            allowed: constrained.or_else(|| self.facts.allowed.clone()),
            history,
        }
    }

    fn suppresses_stops(&self, num_outputs: u32) -> bool {
        num_outputs < self.facts.params.min_tokens
    }

    /// Tokens that the draw after `num_outputs` tokens must not choose: stops that come too early, and the ends of bad
    /// words.
    fn suppressed(&self, num_outputs: u32) -> Vec<TokenId> {
        let stops = if self.suppresses_stops(num_outputs) { &self.facts.stops.suppressed[..] } else { &[] };
        let ends = self.facts.params.bad_words.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            self.output.ends_with(before).then_some(*last)
        });
        let mut suppressed = stops.to_vec();
        let num_stops = suppressed.len();
        suppressed.extend(ends);
        if suppressed.len() > num_stops {
            suppressed.sort_unstable();
            suppressed.dedup();
        }
        suppressed
    }

    /// Whether the draw was from nothing: every token that its constraint or its list allows was suppressed.
    fn had_no_choice(&mut self, token: TokenId) -> bool {
        let constrained = self.constraint.as_mut().map(|constraint| constraint.allowed());
        let Some(allowed) = constrained.or_else(|| self.facts.allowed.clone()) else { return false };
        let suppressed = self.suppressed(self.output.len() as u32);
        if allowed.allows(token) && suppressed.binary_search(&token).is_err() {
            return false;
        }
        let num_allowed: u32 = allowed.iter().map(|word| word.count_ones()).sum();
        let num_suppressed = suppressed.iter().filter(|&&token| allowed.allows(token)).count();
        // A constraint that can be followed no further has nothing to say but its error.
        num_allowed > 0 && num_allowed as usize == num_suppressed
    }

    /// Adds a token and says how it ends the sequence, if it does.
    pub(crate) fn append(&mut self, token: TokenId) -> Appended {
        if self.had_no_choice(token) {
            return Appended::Refused(FinishReason::Impossible);
        }
        let mut stop = self.stop_reason(token);
        if let Some(constraint) = &mut self.constraint {
            let progress = match &stop {
                None => constraint.accept(token),
                Some(_) if constraint.allowed().allows(token) => Ok(Progress::Complete),
                // It says why better than the fact that a stop token came.
                Some(_) => constraint.accept(token).and(Err(NotFollowed::Failed(format!(
                    "token {token} ends the text where its constraint does not"
                )))),
            };
            match progress {
                Ok(Progress::Open) => {}
                Ok(Progress::Complete) => stop = stop.or(Some(FinishReason::Stop(None))),
                Err(NotFollowed::DeadEnd) => return Appended::Refused(FinishReason::Impossible),
                Err(NotFollowed::Failed(message)) => return Appended::Refused(FinishReason::Error(message)),
            }
        }
        self.output.push(token);
        let length = (self.len() >= self.facts.max_len).then_some(FinishReason::Length);
        stop.or(length).map_or(Appended::Open, Appended::Last)
    }

    /// Whether a token is an end-of-sequence or stop token here, and so carries no text.
    pub(crate) fn is_stop(&self, token: TokenId) -> bool {
        self.stop_reason(token).is_some()
    }

    /// Why a token would end the sequence as the next one.
    fn stop_reason(&self, token: TokenId) -> Option<FinishReason> {
        if self.suppresses_stops(self.output.len() as u32) { None } else { self.facts.stops.reason(token) }
    }

    /// The step that these tokens were planned for will not run.
    pub(crate) fn abandon_planned(&mut self) {
        self.num_planned_tokens = self.num_computed_tokens;
        self.num_unknown = 0;
    }

    /// Sets the sequence back to having nothing in the cache. Its tokens stay, so it continues where it was.
    pub(crate) fn forget_computed(&mut self) {
        assert!(self.table.blocks().is_empty(), "blocks are given back before they are forgotten");
        self.num_computed_tokens = 0;
        self.num_planned_tokens = 0;
        self.num_unknown = 0;
        self.num_published = 0;
        self.publishing = self.facts.sharing.is_some();
    }
}

/// Derives one seed from another (the finaliser of SplitMix64), so that neighbouring numbers give unrelated draws.
pub(crate) fn mix_seed(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(prompt: &[TokenId], params: SamplingParams, max_len: u32) -> Sequence {
        let facts = RequestFacts {
            id: RequestId(1),
            prompt: prompt.into(),
            stops: StopTokens::new(&[100], &params),
            params: Arc::new(params),
            constraint: None,
            allowed: None,
            priority: 0,
            max_len,
            seed: 7,
            sharing: None,
            prompt_output: None,
        };
        Sequence::new(Arc::new(facts), 0, 4)
    }

    #[test]
    fn a_span_crosses_from_prompt_to_output() {
        let mut sequence = sequence(&[1, 2, 3], SamplingParams::default(), 10);
        sequence.output = vec![4, 5];
        let tokens = |positions| sequence.span(positions).iter().collect::<Vec<_>>();
        assert_eq!(tokens(0..5), [1, 2, 3, 4, 5]);
        assert_eq!(tokens(2..4), [3, 4]);
        assert_eq!(tokens(4..5), [5]);
        assert_eq!(tokens(0..2), [1, 2]);
    }

    #[test]
    fn end_of_sequence_and_stop_tokens_end_a_sequence() {
        let params = SamplingParams { stop_token_ids: vec![50], ..SamplingParams::default() };
        let mut sequence = sequence(&[1], params, 10);
        assert_eq!(sequence.append(3), Appended::Open);
        assert_eq!(sequence.append(50), Appended::Last(FinishReason::Stop(Some(50))));
        assert_eq!(sequence.append(100), Appended::Last(FinishReason::Stop(None)));
    }

    #[test]
    fn ignored_end_of_sequence_goes_on_to_the_length() {
        let params = SamplingParams { ignore_eos: true, ..SamplingParams::default() };
        let mut sequence = sequence(&[1], params, 3);
        assert_eq!(sequence.append(100), Appended::Open);
        assert_eq!(sequence.append(100), Appended::Last(FinishReason::Length));
    }

    #[test]
    fn min_tokens_suppresses_every_stop() {
        let params = SamplingParams { min_tokens: 1, stop_token_ids: vec![50], ..SamplingParams::default() };
        let mut sequence = sequence(&[1], params, 10);
        assert_eq!(sequence.sample_row(0).suppressed, [50, 100]);
        assert_eq!(sequence.append(3), Appended::Open);
        assert!(sequence.sample_row(0).suppressed.is_empty());
        assert_eq!(sequence.append(50), Appended::Last(FinishReason::Stop(Some(50))));
    }

    #[test]
    fn history_is_carried_only_for_penalties() {
        let mut sequence_without = sequence(&[1, 2], SamplingParams::default(), 10);
        assert!(sequence_without.sample_row(0).history.is_none());
        let params = SamplingParams { presence_penalty: 1.0, ..SamplingParams::default() };
        let mut sequence = sequence(&[1, 2], params, 10);
        sequence.append(3);
        let history = sequence.sample_row(0).history.expect("a penalty needs it");
        assert_eq!((&history.prompt[..], &history.output[..]), ([1, 2].as_slice(), [3].as_slice()));
    }

    #[test]
    fn choices_draw_from_different_seeds() {
        assert_ne!(mix_seed(7, 0), mix_seed(7, 1));
        assert_ne!(mix_seed(7, 0), mix_seed(8, 0));
    }
}
