package resource

import (
	"cmp"
	"fmt"
	"time"

	"shoal/desired"
)

// Answer is why a VM does what it does.
type Answer struct {
	VM    string  `json:"vm"`
	VMID  string  `json:"vm_id"`
	State VMState `json:"state"`
	// AsWanted says that it does what it was asked to.
	AsWanted bool `json:"as_wanted"`
	// Answer is the reason in a sentence; Because leads from it to what is at the bottom of it.
	Answer  string    `json:"answer"`
	Because []Because `json:"because,omitempty"`
	// Remedy is what to do about it.
	Remedy string `json:"remedy,omitempty"`
	// Since is when the last thing that is known of it happened.
	Since time.Time `json:"since,omitzero"`
	// Request is the one that made it so, where one did.
	Request string `json:"request,omitempty"`
}

// Because is a step of an answer.
type Because struct {
	// Item is the item of the host that it is about, Name what that belongs to; empty for a step about something else.
	Item  desired.Ref    `json:"item,omitzero"`
	Name  string         `json:"name,omitempty"`
	Host  string         `json:"host,omitempty"`
	Phase desired.Phase  `json:"phase,omitempty"`
	Fault *desired.Fault `json:"fault,omitempty"`
	Since time.Time      `json:"since,omitzero"`
	Text  string         `json:"text"`
}

// why puts an answer together.
type why struct {
	r    Reader
	vm   *VM
	host string // its name
	a    Answer
}

// WhyVM says why a VM runs or doesn't: by its wish, its place, its host, what the host has got to, what it needs there, and what is
// the matter with that.
func WhyVM(r Reader, vm *VM) Answer {
	st := vmStatus(r, vm)
	w := &why{r: r, vm: vm, host: st.Host, a: Answer{VM: vm.Name, VMID: vm.ID, State: st.State}}
	w.answer(st)
	return w.a
}

func (w *why) say(asWanted bool, remedy, format string, args ...any) {
	w.a.AsWanted, w.a.Remedy, w.a.Answer = asWanted, remedy, fmt.Sprintf(format, args...)
}

func (w *why) because(b Because) { w.a.Because = append(w.a.Because, b) }

func (w *why) answer(st VMStatus) {
	vm := w.vm
	o := w.r.Observed()
	ref := DomainRef(vm.ID)
	switch {
	case vm.Expunging:
		w.say(true, "", "it is being removed for good")
		w.a.Request = vm.Cause
		w.item(ref, 0)
		return
	case !vm.Destroyed.IsZero():
		w.say(true, "shoalctl vm recover "+vm.Name, "it is in the recycle bin since %s", stamp(vm.Destroyed))
		w.a.Since = vm.Destroyed
		return
	case vm.HostID == "":
		w.say(false, "shoalctl vm start "+vm.Name, "it has no host")
		return
	}
	h := o.Host(vm.HostID)
	if !h.Connected && !(st.State == VMStopped && vm.Power == desired.PowerOff) {
		w.say(false, fmt.Sprintf("look at host %s, its network and its agent; when it is back, the VM is what it was asked to be", w.host),
			"its host %s is not heard of%s, so nobody knows whether it runs; it is started nowhere else", w.host, since(h.Since))
		w.a.Since = h.Since
		if s, ok := o.Status(vm.HostID, ref); ok {
			w.because(Because{Item: ref, Name: vm.Name, Host: w.host, Phase: s.Phase, Fault: s.Fault, Since: s.Since, Text: "the host last said: " + phaseText(s)})
		}
		return
	}
	s, seen := o.Status(vm.HostID, ref)
	p, published := o.Published(vm.HostID, ref)
	switch {
	case st.State == VMStopped && vm.Power == desired.PowerOff:
		w.say(true, "shoalctl vm start "+vm.Name, "it was asked to be off")
		// The document has who asked; the VM's own record also changes with what the controller notices.
		w.a.Since, w.a.Request = s.Since, p.Cause
		return
	case h.Reported && h.Facts.Ahead:
		w.say(false, "restore the newest backup of the controller, or decide about the host",
			"host %s has a newer document than this controller ever wrote, and keeps to that", w.host)
		return
	case o.PublishedSeq() < vm.Rev:
		w.say(false, "", "the documents of hosts are being written")
		return
	case !published:
		w.say(false, "read the controller's log: a document that can't be made is told there", "it is not in the document of host %s", w.host)
		return
	case !seen || s.Rev < p.Rev:
		text := fmt.Sprintf("host %s has not got to it yet: it was told generation %d", w.host, o.PublishedGen(vm.HostID))
		if h.Reported {
			text += fmt.Sprintf(" and has accepted %d", h.Facts.Gen)
		}
		w.say(false, "", "%s", text)
		if seen {
			w.because(Because{Item: ref, Name: vm.Name, Host: w.host, Phase: s.Phase, Fault: s.Fault, Since: s.Since, Text: "of the document before it said: " + phaseText(s)})
		}
		return
	}
	w.a.Since, w.a.Request = s.Since, cmp.Or(p.Cause, s.Cause)
	f, err := desired.DecodeFacts[desired.DomainFacts](s)
	if err != nil {
		w.say(false, "", "what host %s says of it can't be read: %v", w.host, err)
		return
	}
	w.settled(s, f)
}

// settled answers from what the host says of the VM as it stands.
func (w *why) settled(s desired.Status, f desired.DomainFacts) {
	vm := w.vm
	switch s.Phase {
	case desired.PhaseDrifted:
		what := ""
		if s.LastDrift != nil {
			what = ": " + s.LastDrift.What
			w.a.Since = s.LastDrift.At
		}
		if len(s.Found) > 0 {
			w.say(false, "", "somebody has changed it on host %s%s; that is about to be taken over", w.host, what)
			return
		}
		w.say(false, fmt.Sprintf("put it right on the host, or let it be healed: shoalctl host update %s --drift domain=heal", w.host),
			"somebody has changed it on host %s%s; it is held as it is by the host's drift policy", w.host, what)
	case desired.PhaseReady:
		switch {
		case f.ByGuest && f.State == desired.StateShutoff:
			w.say(true, "shoalctl vm start "+vm.Name, "its guest has shut itself down")
		case vm.Power == desired.PowerPaused:
			w.say(true, "shoalctl vm resume "+vm.Name, "it was asked to pause")
		default:
			w.say(true, "", "it %s on host %s%s, as it was asked to", f.State, w.host, since(f.Started))
			if f.State == desired.StateRunning {
				w.a.Answer = fmt.Sprintf("it runs on host %s%s, as it was asked to", w.host, since(f.Started))
			}
		}
	default:
		verb := "start"
		switch {
		case vm.Power == desired.PowerOff:
			verb = "stop"
		case vm.Power == desired.PowerPaused && f.State != desired.StatePaused:
			verb = "pause"
		case f.State == desired.StatePaused && vm.Power == desired.PowerOn:
			verb = "resume"
		case f.State == desired.StateRunning, f.State == desired.StatePaused:
			verb = "change"
		}
		switch s.Phase {
		case desired.PhaseWaiting:
			w.say(false, "", "host %s can't %s it before something that it needs is there", w.host, verb)
		case desired.PhaseRefused:
			w.say(false, "", "host %s refuses to %s it", w.host, verb)
		case desired.PhaseRetrying:
			w.say(false, "", "host %s has tried to %s it and failed; it tries again", w.host, verb)
		default:
			w.say(false, "", "host %s is about to %s it", w.host, verb)
		}
		w.item(DomainRef(vm.ID), 0)
		if n := len(w.a.Because); n > 0 {
			if last := w.a.Because[n-1]; last.Fault != nil {
				w.a.Answer += ": " + last.Text
				w.a.Remedy = cmp.Or(last.Fault.Remedy, last.Fault.Code.Remedy())
			}
		}
	}
}

// maxDepth is how far needs are followed: they are four stages deep at most.
const maxDepth = 8

// item adds an item of the VM's host and, where it waits for another one, that.
func (w *why) item(ref desired.Ref, depth int) {
	o := w.r.Observed()
	host := w.vm.HostID
	b := Because{Item: ref, Host: w.host}
	if kind, id := ItemResource(ref); kind != "" {
		if res := w.r.Get(kind, id); res != nil {
			b.Name = res.Base().Name
		}
	}
	s, ok := o.Status(host, ref)
	if !ok {
		b.Text = "the host has not got to it yet"
		if _, published := o.Published(host, ref); !published {
			b.Text = "it is not in the host's document"
		}
		w.because(b)
		return
	}
	b.Phase, b.Fault, b.Since, b.Text = s.Phase, s.Fault, s.Since, phaseText(s)
	w.because(b)
	if s.Phase == desired.PhaseWaiting && s.Fault != nil && s.Fault.Ref != nil && depth < maxDepth && *s.Fault.Ref != ref {
		w.item(*s.Fault.Ref, depth+1)
	}
}

// phaseText is a status in a few words.
func phaseText(s desired.Status) string {
	switch {
	case s.Fault != nil:
		return s.Fault.Message
	case s.Phase == desired.PhaseWorking && s.Progress > 0:
		return fmt.Sprintf("the host is at work, %d %%", s.Progress)
	case s.Phase == desired.PhaseWorking:
		return "the host is at work"
	case s.Phase == desired.PhaseReady:
		return "it is as it should be"
	case s.Phase == desired.PhaseDrifted && s.LastDrift != nil:
		return "changed by others: " + s.LastDrift.What
	default:
		return string(s.Phase)
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + stamp(t)
}
