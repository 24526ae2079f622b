package subjects

// Permissions are the subjects that a user may publish to and subscribe to.
type Permissions struct {
	Publish   []string
	Subscribe []string
	// Respond lets the user answer requests that it received.
	Respond bool
}

// nameTemplate is replaced by the server with the user's name from its JWT; it may stand inside a token.
const nameTemplate = "{{name()}}"

// AgentRole is what an agent may do; its user name is the host's id.
func AgentRole() Permissions {
	return Permissions{
		Publish: []string{
			DirectGet(DesiredBucket(nameTemplate)),
			BucketSubject(ObservedBucket, nameTemplate+".>"),
			AgentAPI(nameTemplate, ">"),
		},
		Subscribe: []string{
			Inbox(nameTemplate) + ".>",
			Hint(nameTemplate, ">"),
			Agent(nameTemplate, ">"),
		},
		Respond: true,
	}
}

// AdminRole is what a person with all rights may do: every operation under the own name, and reading streams.
func AdminRole() Permissions {
	return Permissions{
		Publish:   []string{API(nameTemplate, "*", ">"), "$JS.API.>", "$SRV.>"},
		Subscribe: []string{Inbox(nameTemplate) + ".>", "shoal.hint.>", EventAll},
	}
}

// ViewerRole is what a person may do who only looks.
func ViewerRole() Permissions {
	return Permissions{
		Publish: []string{
			API(nameTemplate, "*", "get"), API(nameTemplate, "*", "list"), API(nameTemplate, "*", "query"),
			"$JS.API.>", "$SRV.>",
		},
		Subscribe: []string{Inbox(nameTemplate) + ".>", "shoal.hint.>", EventAll},
	}
}

// ReadOnlyJetStream are the JetStream requests that change nothing and create no consumer. People may make them.
func ReadOnlyJetStream() []string {
	return []string{
		"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*",
		"$JS.API.CONSUMER.NAMES.*", "$JS.API.CONSUMER.LIST.*", "$JS.API.CONSUMER.INFO.*.*",
	}
}

// InspectorRole is what an operator may do who reads streams and buckets with the nats CLI's view, watch and ls: these make
// consumers and delete them, which are resources of the server, and can have it send what a stream holds to any subject. So it
// is for those who have the installation's keys at hand. It may not write, nor delete what is stored, and calls no operation;
// consumers of controllers, which it could delete too, are made again by them. Its inbox is not named like those of controllers, with which it shares
// an account.
func InspectorRole() Permissions {
	return Permissions{
		Publish: append(ReadOnlyJetStream(), DirectGetAll, DirectGetLast,
			"$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.API.CONSUMER.DELETE.*.*", "$JS.ACK.>", "$JS.FC.>"),
		Subscribe: []string{Inbox(InspectorInbox+nameTemplate) + ".>"},
	}
}

// InspectorInbox goes before an inspector's name in its inbox: _INBOX_inspector-<name>.
const InspectorInbox = "inspector-"

// DirectGetAll matches every request for stored messages by a body (see DirectGet), DirectGetLast those for the newest
// message of a subject, which the nats CLI makes.
const (
	DirectGetAll  = "$JS.API.DIRECT.GET.*"
	DirectGetLast = "$JS.API.DIRECT.GET.*.>"
)

// UserRole is what a person or program of an ordinary account may do: every operation under the own name, each of which the
// controller authorises, and hints of what belongs to the own account. It reads no stream: those hold everybody's.
// The user's JWT bears the tag "account:<id>".
func UserRole() Permissions {
	return Permissions{
		Publish:   []string{API(nameTemplate, "*", ">"), "$SRV.>"},
		Subscribe: []string{Inbox(nameTemplate) + ".>", EventsOf(accountTemplate)},
	}
}

// AccountTag is the tag of a user's JWT that names the account, "account:<id>". Tags are in lower case, as ids are.
const AccountTag = "account:"

// accountTemplate is replaced by the server with the account's id from the tag of the user's JWT.
const accountTemplate = "{{tag(account)}}"

// GuestName is the user name of whoever connects without credentials.
const GuestName = "guest"

// GuestRole is what somebody without credentials may do: ask for some. Answers are sealed to a key of the asker's, for all
// guests share an inbox prefix.
func GuestRole() Permissions {
	return Permissions{
		Publish:   []string{Guest(GuestLogin), Guest(GuestEnrol), Guest(GuestRenew), Guest(GuestTime)},
		Subscribe: []string{Inbox(GuestName) + ".>"},
	}
}
