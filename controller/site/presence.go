package site

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"shoal/controller/identity"
	"shoal/subjects"
)

const (
	// reconcileEvery is how often the picture is put right, because events get lost.
	reconcileEvery = time.Minute
	// reconcileRetry is how soon it is tried again when servers did not answer, at first; then less often. Until they do, hosts that
	// connected before anybody listened are taken for absent.
	reconcileRetry = time.Second
	// connzPage is how many connections one answer may list, connzWait how long servers have to answer.
	connzPage = 1024
	connzWait = 2 * time.Second
)

// connKey is a client's connection.
type connKey struct {
	server string
	cid    uint64
}

// presence is which hosts are connected.
type presence struct {
	account string
	tell    func(host string, connected bool, at time.Time)
	// conns holds a host's connections. There may be two for a while: a host that lost its network comes back before the
	// server has given up on its old connection.
	conns map[string]map[connKey]struct{}
	told  map[string]bool
	// gone are connections that ended, so that an older list can't bring them back.
	gone map[connKey]struct{}
	// fresh are connections that began since the list was asked for.
	fresh map[connKey]struct{}
	// missing counts in how many lists in a row a server has not answered.
	missing map[string]int
	// keys are the agents' public keys by host.
	keys *sync.Map
}

// Presence tells of every host whose agent connects or disconnects, at first of all that are connected, until ctx ends. It
// calls tell from one goroutine.
func (s *Site) Presence(ctx context.Context, tell func(host string, connected bool, at time.Time)) error {
	p := &presence{
		account: s.cfg.Identity.AccountID(identity.AGT), tell: tell, conns: map[string]map[connKey]struct{}{}, told: map[string]bool{},
		gone: map[connKey]struct{}{}, fresh: map[connKey]struct{}{}, missing: map[string]int{},
		keys: &s.hostKeys,
	}
	events := make(chan *nats.Msg, 8192)
	for _, e := range []string{"CONNECT", "DISCONNECT"} {
		sub, err := s.system.ChanSubscribe("$SYS.ACCOUNT."+p.account+"."+e, events)
		if err != nil {
			return fmt.Errorf("subscribe to %s events: %w", e, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	status := s.system.StatusChanged(nats.CONNECTED)
	defer s.system.RemoveStatusListener(status)
	return p.follow(ctx, events, status, func(ctx context.Context) list {
		l := s.connections(ctx, p.account)
		if l.err != nil && ctx.Err() == nil {
			s.log.Warn().Err(l.err).Msg("connected hosts not listed")
		}
		return l
	})
}

// follow takes in events, and lists of connections: at first, after each change of status, and now and then.
func (p *presence) follow(ctx context.Context, events <-chan *nats.Msg, status <-chan nats.Status, connections func(context.Context) list) error {
	lists := make(chan list, 1)
	next := time.NewTimer(0)
	defer next.Stop()
	asking, retry := false, reconcileRetry
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-events:
			p.event(m)
		case <-status:
			next.Reset(0)
		case <-next.C:
			next.Reset(reconcileEvery - reconcileEvery/8 + rand.N(reconcileEvery/4))
			if asking {
				continue
			}
			asking = true
			clear(p.gone)
			clear(p.fresh)
			go func() { lists <- connections(ctx) }()
		case l := <-lists:
			asking = false
			if l.err != nil {
				next.Reset(retry)
				retry = min(2*retry, reconcileEvery)
				continue
			}
			retry = reconcileRetry
			p.reconcile(l, time.Now().UTC())
		}
	}
}

// event takes in that a connection began or ended.
func (p *presence) event(m *nats.Msg) {
	var e struct {
		Server server.ServerInfo `json:"server"`
		Client server.ClientInfo `json:"client"`
		At     time.Time         `json:"timestamp"`
	}
	if err := json.Unmarshal(m.Data, &e); err != nil {
		return // the next list puts it right
	}
	host, public, ok := hostOf(e.Client.Jwt)
	if !ok {
		return
	}
	p.keys.Store(host, public)
	key := connKey{e.Server.ID, e.Client.ID}
	if e.Client.Stop != nil {
		p.gone[key] = struct{}{}
		delete(p.conns[host], key)
	} else {
		p.fresh[key] = struct{}{}
		p.add(host, key)
	}
	p.announce(host, e.At.UTC())
}

func (p *presence) add(host string, key connKey) {
	if p.conns[host] == nil {
		p.conns[host] = map[connKey]struct{}{}
	}
	p.conns[host][key] = struct{}{}
}

// reconcile replaces what is known by a list, but for what happened since it was asked for.
func (p *presence) reconcile(l list, at time.Time) {
	known := map[string]struct{}{}
	for _, conns := range p.conns {
		for k := range conns {
			known[k.server] = struct{}{}
		}
	}
	for id := range known {
		if _, ok := l.servers[id]; ok {
			delete(p.missing, id)
		} else {
			p.missing[id]++
		}
	}
	for host, conns := range p.conns {
		for k := range conns {
			_, answered := l.servers[k.server]
			_, listed := l.conns[k]
			_, fresh := p.fresh[k]
			// One lost answer must not make all hosts of a server look dead.
			if !fresh && (answered && !listed || !answered && p.missing[k.server] >= 2) {
				delete(conns, k)
			}
		}
		p.announce(host, at)
	}
	for k, host := range l.conns {
		if _, gone := p.gone[k]; !gone {
			p.add(host, k)
			p.announce(host, at)
		}
	}
}

// announce tells of a host if it is not what was told last.
func (p *presence) announce(host string, at time.Time) {
	connected := len(p.conns[host]) > 0
	if !connected {
		delete(p.conns, host)
	}
	if p.told[host] == connected {
		return
	}
	if connected {
		p.told[host] = true
	} else {
		delete(p.told, host)
	}
	p.tell(host, connected, at)
}

// list is the connections of agents as the servers list them.
type list struct {
	servers map[string]struct{}
	conns   map[connKey]string
	err     error
}

// connections asks every server for its connections of an account.
func (s *Site) connections(ctx context.Context, account string) list {
	l := list{servers: map[string]struct{}{}, conns: map[connKey]string{}}
	for offset, more := 0, true; more; offset += connzPage {
		more = false
		req, err := json.Marshal(server.ConnzOptions{Account: account, Username: true, Offset: offset, Limit: connzPage})
		if err != nil {
			l.err = err
			return l
		}
		answers, err := s.ask(ctx, "$SYS.REQ.SERVER.PING.CONNZ", req)
		if err != nil {
			l.err = err
			return l
		}
		for _, b := range answers {
			var a struct {
				Server server.ServerInfo `json:"server"`
				Data   *server.Connz     `json:"data"`
			}
			if err := json.Unmarshal(b, &a); err != nil || a.Data == nil {
				continue
			}
			l.servers[a.Server.ID] = struct{}{}
			for _, c := range a.Data.Conns {
				if host, key, ok := hostOf(c.JWT); ok {
					s.hostKeys.Store(host, key)
					l.conns[connKey{a.Server.ID, c.Cid}] = host
				}
			}
			more = more || offset+len(a.Data.Conns) < a.Data.Total
		}
	}
	return l
}

// ask gathers the answers of all servers. The embedded one is alone: nobody waits for others then.
func (s *Site) ask(ctx context.Context, subject string, req []byte) ([][]byte, error) {
	inbox := s.system.NewRespInbox()
	sub, err := s.system.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := s.system.PublishRequest(subject, inbox, req); err != nil {
		return nil, err
	}
	limit := connzWait
	if s.server != nil {
		limit = 5 * connzWait // it ends with the one answer, and the server may be busy: everybody connects when it starts
	}
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out [][]byte
	for {
		m, err := sub.NextMsgWithContext(wait)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && len(out) == 0:
			return nil, fmt.Errorf("ask servers for connections: %w", err)
		case err != nil:
			return out, nil
		}
		out = append(out, m.Data)
		if s.server != nil {
			return out, nil
		}
	}
}

// hostOf is the host that a JWT was issued for, and the public key of its agent. The server has checked both.
func hostOf(token string) (host, key string, ok bool) {
	c, err := jwt.DecodeUserClaims(token)
	if err != nil || !subjects.ValidToken(c.Name) {
		return "", "", false
	}
	return c.Name, c.Subject, true
}

// HostKey is the public key that a host's agent has connected with since this controller runs; "" for one that has not.
func (s *Site) HostKey(host string) string {
	key, _ := s.hostKeys.Load(host)
	text, _ := key.(string)
	return text
}
