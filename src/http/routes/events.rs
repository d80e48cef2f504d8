//! Events as they happen, one after the other, as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event as Sent, KeepAlive, Sse},
};
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::http::{Event, Subscription, answer::Failure, answers, api::Api};

/// Between two signs of life when nothing happens.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// After which time a browser whose connection broke asks again.
const RETRY: Duration = Duration::from_secs(2);

pub(super) fn routes(router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    router.routes(routes!(events))
}

/// What happens in the node, as it happens: server-sent events, each with `id`, `event` (its kind) and `data` (one JSON object).
///
/// A reader that is too slow gets a last event `dropped`. After a break, `Last-Event-ID` brings what was missed, as far as it is
/// kept; an event `gap` says that it is not.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(("Last-Event-ID" = Option<u64>, Header, description = "The last event that was read")),
    responses(
        (status = 200, description = "Events, until either side ends it", content_type = "text/event-stream"),
        (status = 503, description = "As many listen as may", body = answers::Error),
    ))]
async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, Failure> {
    // One that is no number is of another node, or of somebody's making: the events begin now.
    let after = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let subscription = api.source.events(after);
    let Some(Subscription { past, future }) = subscription else {
        return Err(Failure::busy("As many clients listen to events as this node allows; try later."));
    };
    let gap = after.and_then(|after| gap(after, &past));
    let hello = Sent::default().retry(RETRY).comment("hotpocket");
    let past = stream::iter(past).map(|event| sent(&event));
    let stream = stream::iter([hello]).chain(stream::iter(gap)).chain(past).chain(later(future));
    Ok(Sse::new(stream.map(Ok)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// What says that events are missing after this one.
fn gap(after: u64, past: &[Arc<Event>]) -> Option<Sent> {
    let next = past.first().map(|event| event.id)?;
    (next > after.saturating_add(1)).then(|| {
        let data = format!("{{\"after\":{after},\"next\":{next}}}");
        Sent::default().event("gap").data(data)
    })
}

fn later(future: Receiver<Arc<Event>>) -> impl Stream<Item = Sent> {
    stream::unfold(Some(future), |future| async move {
        let mut future = future?;
        match future.recv().await {
            Ok(event) => Some((sent(&event), Some(future))),
            Err(RecvError::Lagged(missed)) => {
                let data = format!("{{\"missed\":{missed},\"error\":\"this reader is too slow; connect again\"}}");
                Some((Sent::default().event("dropped").data(data), None))
            }
            Err(RecvError::Closed) => None,
        }
    })
}

fn sent(event: &Event) -> Sent {
    Sent::default().id(event.id.to_string()).event(event.name).data(&event.data)
}
