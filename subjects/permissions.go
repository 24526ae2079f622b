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

// DirectGetAll matches every request for stored messages by a body (see DirectGet), DirectGetLast those for the newest
// message of a subject, which the nats CLI makes.
const (
	DirectGetAll  = "$JS.API.DIRECT.GET.*"
	DirectGetLast = "$JS.API.DIRECT.GET.*.>"
)
