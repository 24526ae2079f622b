// Package controller decides what hosts must be. Run is the only place that wires a controller.
//
//	api ──▶ store ──append──▶ JOURNAL ──ack──▶ store ──changes──▶ publish ──▶ desired_<host>
//	         ▲  └── plan (inside the commit)     ▲
//	         └── follow-up decisions ────────────┴── observed_, presence
//
// Every controller reads the journal and what hosts report; one of them leads: it alone serves the API, commits, publishes and
// downloads images. Who leads is the lease's decision (controller/site); that two can't write is the journal's fence.
// A controller that takes over has everything in memory already.
//
// # Improvements on the design page, 2026-11-23
//
//   - Placement and allocation are decided inside the commit of the call that asks for them (controller/plan on the
//     store's transaction), not by a later pass: a create is whole and placed when it is acknowledged, or refused with
//     the reason for every host. What follows from reports of hosts, and from time, is decided by plan.Tick in the leader.
//   - Whether a call has taken effect is asked of all items that it caused, on all hosts, by its request id. For that
//     the store joins what publish has written, item by item, as it joins what hosts report.
//   - Item Rev is the generation at which publish saw the content change, not the Rev of some resource: the content also
//     changes when something that it was made from goes.
//   - The command line is controller/api/cli, since cmd has no logic: it follows from the registry as the API does.
//   - Image files lie with the controller that added them; a controller that comes to lead fetches what it lacks from those that
//     the image's record lists (controller/image). The key that signs their addresses lies with the shared identity.
//   - Both ports speak TLS 1.3 only (controller/certificate). A private authority is made at the first start; nothing has to be
//     set up for that, and there is no switch to go without.
//
// # Improvements on the design page, 2026-11-24
//
//   - Whoever has no credentials is a guest (account ENROLL): NATS gives those who connect without any a role that may ask for three things,
//     a session, admission of a host, a host's expired credentials anew. So a join token is a line of text with an id, a secret and a
//     pin, and holds no credentials; people log in on the port that everything else uses. Answers are sealed to a key of the asker's.
//   - Rights are decided in one pure package, controller/access, on a view that holds what the caller may see; operations never see
//     parameters that lead elsewhere.
//   - A revocation is a resource, made in the transaction that ends a session or host: whoever leads brings the servers into line with them.
//   - Hints (shoal.event) name the account that owns what changed, and an ordinary account hears its own only.
//   - Every controller keeps an index of the journal and checkpoints of the state in its data directory (controller/history), which
//     therefore imports nats.go. HISTORY also holds what is known of a host as a whole, under host.self, written by the leader when
//     it changes: without that nothing could be said of the status of anything in the past. Calls that changed nothing
//     are entries of the journal without changes; their request ids may come again.
//   - A plan is a resource: whether its base has moved is decided in the transaction that applies it. It is a seed and calls, not
//     a list of results, so that applying it runs the same code as everything else, with the same checks and rights.
//   - Drift policies are part of clusters and hosts. An agent says in a spec what it found; what to make of that is a decision
//     like others (controller/plan).
//   - Documents say what they were made from (items of kind origin, controller/plan): names, owners, tags, what is on offer. Agents only keep
//     that; it is what a controller is put together from when its journal and all backups are lost. Each resource has an
//     item of its own rather than a part in others, so that agents that do not know the kind go on with the rest.
//   - Kickstart files are a contract between who makes installation media (controller/iso) and who installs from them (agent/metal), so
//     what reads them is desired/kickstart. Media are filled into reserved space of an image that scripts/iso makes, so that making one needs no tools.
//   - In a cluster of NATS servers, what agents report and HISTORY are replicated as the journal is, without async persistence, which
//     JetStream does not have for replicas. The projection is not: its writer sends ahead of acknowledgements. A controller starts
//     without it from the journal, and the leader makes anew what is gone for good (site.Keep, publish).
//   - Two documents of one generation can come about when a journal is rolled back. Agents tell them apart by the head's hash, say
//     that they are ahead, and are given a generation beyond both.
//   - Whether a bucket or the journal has lost what a host was told is decided by the journal's end: see publish. A journal that was
//     put back by hand, and has grown beyond what a host was told before anything of that host is seen, can't be told from one that lost
//     nothing. Restoring goes on a million sequences further for that reason, and holds every host.
//   - Agents replace themselves by desired state: which host is to run which release is in its record, by decisions that plan.Tick takes from
//     what hosts report (a rollout is a resource), and an item of its document says it. What a release is signed by is the key that
//     signs the credentials of hosts: a host knows it from its own, so that nothing more has to be brought there, and nothing to be rotated
//     beside it. Hosts get binaries from the leading controller over the subjects that agents may use already, not from the bucket of
//     artifacts, which is of another account: no permission of theirs had to grow.
//   - The head of a document has a schema, absent for the first; it grows with heads and items, and not with specs and kinds.
package controller
