package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"shoal/controller/access"
	"shoal/controller/backup"
	"shoal/controller/history"
	"shoal/controller/plan"
	"shoal/controller/resource"
	"shoal/controller/trace"
)

// Class says what a call of an operation can do.
type Class string

// The classes.
const (
	Read      Class = "read"      // changes nothing
	Write     Class = "write"     // changes something that can be changed back
	Dangerous Class = "dangerous" // may end a guest's work or lose data
)

// Result says what an operation answers with.
type Result string

// The results.
const (
	ResultOne   Result = "one"   // one object
	ResultList  Result = "list"  // a Page
	ResultReply Result = "reply" // a Reply
)

// Kinds that are no resources but have operations.
const (
	KindSystem   resource.Kind = "system"
	KindSchema   resource.Kind = "schema"
	KindIdentity resource.Kind = "identity"
	KindQuota    resource.Kind = "quota"
	KindAudit    resource.Kind = "audit"
	KindHistory  resource.Kind = "history"
	KindReplay   resource.Kind = "replay"
)

// Column is a column of an operation's table.
type Column struct {
	Title string `json:"title"`
	// Path leads to the value in the result, dotted.
	Path string `json:"path"`
	// Wide columns are shown with -o wide only.
	Wide bool `json:"wide,omitempty"`
	// As is how the value is shown: "" as it is, "size" bytes, "mib" mebibytes, "time" an instant, "age" the time since.
	As string `json:"as,omitempty"`
}

// Operation is one thing that can be asked of a controller.
type Operation struct {
	Kind resource.Kind
	Verb string
	// Aliases are other names of its command.
	Aliases []string
	Summary string
	// Help goes on where the summary ends; Example is one or more command lines.
	Help, Example string
	Class         Class
	Params        []Param
	Result        Result
	Columns       []Column
	// Task is set where the effect on hosts takes time: a call makes a task.
	Task bool
	// Command is another name of its command, beside the kinds; "" for none.
	Command string
	// Scope is who may call it at all; see its values. What a caller may do with which resources is decided by package access.
	Scope Scope
	// Paths are further places in the tree of commands, such as "host approve".
	Paths []string
	// Proposes is set where the command only shows what would be done, unless told --yes.
	Proposes bool

	// streams is set for a read that finds what it shows in the streams: no view of a past moment is opened for it.
	streams bool
	params  reflect.Type
	read    func(ctx context.Context, env *Env, r resource.Reader, params any) (any, error)
	write   func(tx resource.Tx, params, prepared any) (Outcome, error)
	// prepare does before a write what can't be done in a transaction, such as hashing a password; write gets its result. It
	// runs once the caller was found to be allowed to.
	prepare func(ctx context.Context, env *Env, r resource.Reader, who access.Principal, params any) (any, error)
	// serve answers a call that is more than one transaction or needs more than resources; it checks nothing that Call has checked.
	serve func(ctx context.Context, s *Service, in served) (any, error)
	// maxBytes is the largest request, where that is not MaxRequestBytes.
	maxBytes int
	// after adds to the reply of a write that was done, what can't be done in a transaction.
	after func(env *Env, r resource.Reader, prepared any, reply *Reply) error
}

// Name is "<kind>.<verb>": how the journal and the service's endpoints call it.
func (o *Operation) Name() string { return string(o.Kind) + "." + o.Verb }

// Command is the kind's place in the tree of commands, "vm" or "host token".
func Command(kind resource.Kind) string {
	switch kind {
	case resource.KindHostToken:
		return "host token"
	case resource.KindRelease, resource.KindRollout:
		return "agent " + string(kind)
	default:
		return string(kind)
	}
}

// NewParams is a pointer to an empty struct of parameters.
func (o *Operation) NewParams() any { return reflect.New(o.params).Interface() }

// Decode reads a request's body strictly and checks that what is required is there.
func (o *Operation) Decode(body []byte) (params any, common Common, err error) {
	if limit := cmp.Or(o.maxBytes, MaxRequestBytes); len(body) > limit {
		return nil, common, resource.Invalid("request", "is %d bytes long, at most %d are allowed", len(body), limit)
	}
	if strings.TrimSpace(string(body)) == "" {
		body = []byte("{}")
	}
	v := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: "Params", Type: o.params}, {Name: "Common", Type: reflect.TypeFor[Common]()}, {Name: "Past", Type: reflect.TypeFor[Past]()},
	})).Elem()
	if err := decodeInto("request", body, o.allParams(), v); err != nil {
		return nil, common, err
	}
	if err := checkRequired("request", o.Params, v.Field(0)); err != nil {
		return nil, common, err
	}
	p := reflect.New(o.params)
	p.Elem().Set(v.Field(0))
	common = v.Field(1).Interface().(Common)
	common.At = v.Field(2).Interface().(Past).At
	return p.Interface(), common, nil
}

// allParams are the parameters of a request as fields of a struct of three: the operation's, and those of every write or of every read.
func (o *Operation) allParams() []Param {
	out := make([]Param, 0, len(o.Params)+3)
	lists := [3][]Param{0: o.Params}
	if o.Class == Read {
		lists[2] = o.commonParams()
	} else {
		lists[1] = o.commonParams()
	}
	for i, list := range lists {
		for _, p := range list {
			p.index = append([]int{i}, p.index...)
			out = append(out, p)
		}
	}
	return out
}

func (o *Operation) commonParams() []Param {
	if o.Class == Read {
		return paramsOf(reflect.TypeFor[Past]())
	}
	return paramsOf(reflect.TypeFor[Common]())
}

// authorise replaces names of resources in the parameters by ids, of what the caller sees, and decides whether the caller may do
// this with them. It is the only place where that is decided. Seen is what the caller sees of full.
func (o *Operation) authorise(full, seen resource.Reader, who access.Principal, params any) error {
	targets, err := resolve(readers{seen, full}, "", o.Params, reflect.ValueOf(params).Elem(), who.Admin)
	if err != nil {
		return err
	}
	return who.Check(full, access.Action{Kind: o.Kind, Verb: o.Verb, Read: o.Class == Read, Admin: o.adminOnly(), Own: o.Scope == ScopeOwn}, targets)
}

// Scope is who may call an operation at all.
type Scope string

// The scopes.
const (
	ScopeKind    Scope = ""        // by kind: what an installation is made of is changed by the admin account only
	ScopeAdmin   Scope = "admin"   // the admin account only
	ScopeAccount Scope = "account" // every account, about what it sees; writes, about what it owns
	ScopeOwn     Scope = "own"     // everybody about themselves, without a policy; else like ScopeAccount
)

func (o *Operation) adminOnly() bool {
	if o.Scope != ScopeKind {
		return o.Scope == ScopeAdmin
	}
	if o.Class == Read {
		return false
	}
	switch o.Kind {
	case resource.KindZone, resource.KindCluster, resource.KindHost, resource.KindStorage, resource.KindOffering, resource.KindDiskOffering, resource.KindVXLANPool,
		resource.KindAccount, resource.KindHostToken, resource.KindEnrolment, resource.KindRelease, resource.KindRollout:
		return true
	default:
		return false
	}
}

// Args are the positional parameters, in order.
func (o *Operation) Args() []Param {
	var out []Param
	for _, p := range o.Params {
		if p.Arg > 0 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Param) int { return a.Arg - b.Arg })
	return out
}

// Common are the parameters that every write has.
type Common struct {
	// Request is the request's id, made by the client. The same id again is answered with what the first call did.
	Request string `json:"request,omitempty" help:"id of the request; a repetition with the same id is done once"`
	DryRun  bool   `json:"dry_run,omitempty" help:"tell what would change and change nothing"`
	// At is the moment that a read is of; "" for now. See Past.
	At string `json:"-"`
}

// Past are the parameters that every read has.
type Past struct {
	At string `json:"at,omitempty" help:"show how it was then: a time such as 2026-11-24T15:04:05Z, how long ago such as -2h or -1d12h, or a sequence of the journal"`
}

// Outcome is what the function of a write has done.
type Outcome struct {
	// Resources are what was made or changed, the main one first.
	Resources []resource.Resource
	// Deleted are what was taken out.
	Deleted []plan.Deleted
	// Subject is what a task is about, where Resources is empty.
	Subject resource.Ref
}

func did[T resource.Resource](r T, err error) (Outcome, error) {
	if err != nil {
		return Outcome{}, err
	}
	return Outcome{Resources: []resource.Resource{r}}, nil
}

// Reply is the answer to a write.
type Reply struct {
	// Request is the id of the request, Seq the journal sequence of its transaction.
	Request string `json:"request"`
	Seq     uint64 `json:"seq,omitempty"`
	// Task is the id of the task that follows the effect on hosts; empty where there is none. With several resources
	// Tasks has one for each.
	Task  string   `json:"task,omitempty"`
	Tasks []string `json:"tasks,omitempty"`
	// Repeated says that an earlier call with the same request id did it.
	Repeated bool `json:"repeated,omitempty"`
	// Resource is what was made or changed; Resources all of them, where there are several.
	Resource  any            `json:"resource,omitempty"`
	Resources []any          `json:"resources,omitempty"`
	Deleted   []plan.Deleted `json:"deleted,omitempty"`
	// DryRun says that nothing was changed; Documents is what would change on hosts.
	DryRun    bool            `json:"dry_run,omitempty"`
	Documents []plan.HostDiff `json:"documents,omitempty"`
	// JWT is the credential that was signed, without its key, which only the caller has; Expires is until when it is good.
	JWT     string    `json:"jwt,omitempty" secret:"true"`
	Expires time.Time `json:"expires,omitzero"`
	// Token is a join token, which is shown this once.
	Token string `json:"token,omitempty" secret:"true"`

	main resource.Resource
}

// Page is the answer to a list.
type Page struct {
	Items []json.RawMessage `json:"items"`
	// Total is the number that match, whatever limit and offset are.
	Total int `json:"total"`
	// Next is the offset of what did not fit in this answer; 0 at the end.
	Next int `json:"next,omitempty"`
	// Cursor, where there is one, is given instead of an offset to go on.
	Cursor string `json:"cursor,omitempty"`
	// Seq is the journal sequence of the view.
	Seq uint64 `json:"seq"`
}

// Registry holds every operation.
type Registry struct {
	ops    []*Operation
	byName map[string]*Operation
}

// Operations are all, by kind and verb.
func (g *Registry) Operations() []*Operation { return g.ops }

// Find is the operation of a kind with that verb or alias, or nil.
func (g *Registry) Find(kind resource.Kind, verb string) *Operation {
	return g.byName[string(kind)+"."+verb]
}

// NewRegistry declares every operation.
func NewRegistry() *Registry {
	g := &Registry{byName: map[string]*Operation{}}
	for _, declare := range []func(*Registry){
		places, hosts, storages, images, offerings, networks, groups, vms, nics, volumes, tasks, plans, drifts, traces, accounts, users, sessions, shares, enrolments, releases, past, system, site, backups, ahead,
	} {
		declare(g)
	}
	return g
}

func (g *Registry) add(o *Operation) {
	o.Params = paramsOf(o.params)
	for i := range o.Params {
		if p := &o.Params[i]; p.Name == "id" && p.Arg == 1 {
			p.Main = true
			if p.Ref == "" && resource.New(o.Kind) != nil {
				p.Ref, p.TypeName = o.Kind, string(o.Kind)
			}
		}
	}
	for _, name := range append([]string{o.Verb}, o.Aliases...) {
		key := string(o.Kind) + "." + name
		if g.byName[key] != nil {
			panic(fmt.Sprintf("operation %s is declared twice", key))
		}
		g.byName[key] = o
	}
	g.ops = append(g.ops, o)
}

// reads declares an operation that reads.
func reads[P any](g *Registry, o Operation, run func(env *Env, r resource.Reader, p *P) (any, error)) {
	o.Class, o.params = Read, reflect.TypeFor[P]()
	o.read = func(_ context.Context, env *Env, r resource.Reader, p any) (any, error) { return run(env, r, p.(*P)) }
	g.add(&o)
}

// finds declares an operation that reads what the streams have of the past.
func finds[P any](g *Registry, o Operation, run func(ctx context.Context, env *Env, r resource.Reader, p *P) (any, error)) {
	o.Class, o.params, o.streams = Read, reflect.TypeFor[P](), true
	o.read = func(ctx context.Context, env *Env, r resource.Reader, p any) (any, error) {
		if env.History == nil {
			return nil, noHistory()
		}
		return run(ctx, env, r, p.(*P))
	}
	g.add(&o)
}

// asks declares an operation that reads more than resources.
func asks[P any](g *Registry, o Operation, run func(ctx context.Context, env *Env, r resource.Reader, p *P) (any, error)) {
	o.Class, o.params = Read, reflect.TypeFor[P]()
	o.read = func(ctx context.Context, env *Env, r resource.Reader, p any) (any, error) {
		return run(ctx, env, r, p.(*P))
	}
	g.add(&o)
}

// writes declares an operation that changes resources. The function runs inside a transaction, perhaps more than once.
func writes[P any](g *Registry, o Operation, run func(tx resource.Tx, p *P) (Outcome, error)) {
	o.params = reflect.TypeFor[P]()
	if o.Class == "" {
		o.Class = Write
	}
	o.Result = ResultReply
	o.write = func(tx resource.Tx, p, _ any) (Outcome, error) { return run(tx, p.(*P)) }
	g.add(&o)
}

// writesPrepared is writes for an operation with a part that is done before the transaction.
func writesPrepared[P, Q any](g *Registry, o Operation, prepare func(ctx context.Context, env *Env, r resource.Reader, who access.Principal, p *P) (Q, error),
	run func(tx resource.Tx, p *P, prepared Q) (Outcome, error),
) {
	o.params = reflect.TypeFor[P]()
	if o.Class == "" {
		o.Class = Write
	}
	o.Result = ResultReply
	o.prepare = func(ctx context.Context, env *Env, r resource.Reader, who access.Principal, p any) (any, error) {
		return prepare(ctx, env, r, who, p.(*P))
	}
	o.write = func(tx resource.Tx, p, prepared any) (Outcome, error) { return run(tx, p.(*P), prepared.(Q)) }
	g.add(&o)
}

// serves declares an operation that changes something in more than one step. The function works in a Service.
func serves[P any](g *Registry, o Operation, run func(s *Service, ctx context.Context, in served, p *P) (*Reply, error)) {
	o.params = reflect.TypeFor[P]()
	if o.Class == "" {
		o.Class = Write
	}
	o.Result = ResultReply
	o.serve = func(ctx context.Context, s *Service, in served) (any, error) { return run(s, ctx, in, in.params.(*P)) }
	g.add(&o)
}

// Env is what operations need beside the store.
type Env struct {
	// Now is the clock.
	Now func() time.Time
	// Version is the controller's.
	Version, Name string
	// Registry is where schemas come from.
	Registry *Registry
	// HostJWT signs the credential of a host for its public key, SessionJWT that of a session.
	HostJWT    func(hostID, publicKey string) (jwt string, expires time.Time, err error)
	SessionJWT func(s *resource.Session) (string, error)
	// Passwords hashes and checks passwords.
	Passwords Passwords
	// SessionTime is how long a session lasts without being renewed.
	SessionTime time.Duration
	// Door is where hosts come in: the servers' addresses, the pin of their certificates, and the certificates (PEM) that theirs are
	// signed by.
	Door func() (urls []string, pin, ca string)
	// caller is who asks, and whole everything there is; the service sets them for each call.
	caller access.Principal
	whole  resource.Reader
	// moment is the one that a read is of; zero for now.
	moment history.Moment
	// History is the past; nil where there is none.
	History *history.History
	// ImageProgress is how far an image's download is, if one is running.
	ImageProgress func(id string) (percent int, ok bool)
	// Usage is what takes space, Backups which backups there are, Ahead which hosts know more than the journal.
	Usage   func(ctx context.Context) ([]SiteUsage, error)
	Backups func() ([]backup.Info, error)
	Ahead   func() []AheadInfo
	// Releases takes in binaries of agents; nil where none are kept.
	Releases Releases
	// Tracer follows requests through the streams; nil where there are none.
	Tracer *trace.Tracer
}

// Passwords hashes and checks passwords. A hash is sealed, so that it may be recorded where others can read. Both take time and
// memory on purpose, and wait for their turn until ctx ends.
type Passwords interface {
	Hash(ctx context.Context, plain string) (sealed string, err error)
	Check(ctx context.Context, sealed, plain string) (bool, error)
}

// meta are the parameters of everything that is created.
type meta struct {
	Name        string   `json:"name" arg:"1" required:"true" help:"name, 1 to 128 characters; it need not be unique"`
	Description string   `json:"description,omitempty" help:"free text, up to 2048 bytes"`
	Tags        []string `json:"tags,omitempty" flag:"tag" help:"tag, free text or namespace::key::value"`
}

func (m meta) base(tx resource.Tx) resource.Meta {
	return resource.Meta{Name: m.Name, Description: m.Description, Tags: m.Tags, Owner: tx.Request().Owner()}
}

// metaChange are the parameters of everything that is updated.
type metaChange struct {
	Name        *string   `json:"name,omitempty" help:"new name"`
	Description *string   `json:"description,omitempty" help:"new description"`
	Tags        *[]string `json:"tags,omitempty" flag:"tag" help:"new tags, which replace the old ones; an empty text for none"`
}

func (m metaChange) apply(b *resource.Meta) {
	if m.Name != nil {
		b.Name = *m.Name
	}
	if m.Description != nil {
		b.Description = *m.Description
	}
	if m.Tags != nil {
		b.Tags = *m.Tags
	}
}

// set copies an optional parameter.
func set[T any](into *T, from *T) {
	if from != nil {
		*into = *from
	}
}

// memoryMiB turns a size into mebibytes.
func memoryMiB(z Size) (int, error) {
	const field = "memory"
	if z%(1<<20) != 0 {
		return 0, resource.Invalid(field, "%d bytes is not a whole number of MiB", uint64(z)).WithRemedy("give a unit, such as %s 512MiB", field)
	}
	if z>>20 > 1<<30 {
		return 0, resource.Invalid(field, "%s is too much", z)
	}
	return int(z >> 20), nil
}
