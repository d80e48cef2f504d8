//! The routes, one file per area. Each declares itself to the router and the document at once.

mod admin;
mod docs;
mod events;
mod ledgers;
mod node;

use utoipa_axum::router::OpenApiRouter;

pub(super) use docs::page as docs_page;

use super::api::Api;

/// All of them.
pub(super) fn all(router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    let areas = [node::routes, ledgers::routes, events::routes, admin::routes, docs::routes];
    areas.into_iter().fold(router, |router, area| area(router))
}
