// How the results of consecutive spans of a context are put together: the one of the spans before with the next, in order.
//
// A span's result is SPAN_ELEMENTS elements: the weighted sum of its values, WIDTH elements, then its state.

const LOWEST = -3.4e38;
const WIDTH = $WIDTHu; // elements of a head
#if VECTOR
const SPAN_ELEMENTS = WIDTH + 1u;
#else
const SPAN_ELEMENTS = WIDTH + 2u;
#end

struct SpanState {
    largest: f32, // score
    total: f32,   // of the weights exp(score - largest)
}

// The first position that a token sees.
fn first_position(position: u32, window: u32) -> u32 {
    return position + 1u - min(window, position + 1u);
}

// By what the results of the spans before and of the next one are multiplied.
struct Shares {
    before: f32,
    next: f32,
}

fn shares_of(before: SpanState, next: SpanState) -> Shares {
    let largest = max(before.largest, next.largest);
    return Shares(exp(before.largest - largest), exp(next.largest - largest));
}

fn joined(shares: Shares, before: Element, next: Element) -> Element {
    return fma(before, Element(shares.before), next * shares.next);
}

fn joined_state(shares: Shares, before: SpanState, next: SpanState) -> SpanState {
    let total = fma(before.total, shares.before, next.total * shares.next);
    return SpanState(max(before.largest, next.largest), total);
}
