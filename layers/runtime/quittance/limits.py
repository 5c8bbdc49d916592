"""All limits of the platform, in one place. Each is tested at the limit and one beyond.

Names contain the unit. A limit that an operator may change is a parameter of the template instead (see `config.py`).
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Contents of a request.
INPUT_BYTES_MAX: Final = MIB
JSON_DEPTH_MAX: Final = 64
MEMBERS_READ_MAX: Final = 1_000  # of a request's object, read one by one to keep its input as it was sent
FAULTS_NAMED_MAX: Final = 100  # in the problem of one request; a last entry says that there are more
FIELD_NAME_CHARS_MAX: Final = 200  # of a client's field name in a problem; the longest path of the API has some 60
FAULT_CHARS_MAX: Final = 1_000  # of the sentence about one field
DETAIL_CHARS_MAX: Final = 2_000  # of a problem's detail: Step Functions truncates a cause at 32 KiB of JSON
TASK_ID_CHARS_MAX: Final = 128
STATED_TASK_CHARS_MAX: Final = TASK_ID_CHARS_MAX + len(":judge-agent")  # as receipts name a judge's task
ACCOUNT_ID_CHARS_MAX: Final = 255  # OpenID Connect Core 1.0 §2: a `sub` has at most 255 ASCII characters
ACCOUNT_ID_PATTERN: Final = r'^[!-"$-~]+$'  # visible ASCII except '#', which separates the parts of ledger keys
OWN_ACCOUNT: Final = "me"  # stands for the caller's own account in a path, so no account may have this id
DOT_SEGMENTS: Final = frozenset({".", ".."})  # not ids: clients and gateways remove them from paths (RFC 3986 §5.2.4)
ACCOUNT_IDS_RESERVED: Final = DOT_SEGMENTS | {OWN_ACCOUNT}
AGENT_NAME_CHARS_MAX: Final = 100
AGENT_DESCRIPTION_CHARS_MAX: Final = 2_000
VERSION_NUMBER_MAX: Final = 10**9  # of an agent; each is an upload that its owner opened
PAGE_ITEMS_MAX: Final = 100
REASON_CHARS_MAX: Final = 500  # of an operator's reason
PAYOUT_ID_CHARS_MAX: Final = (ACCOUNT_ID_CHARS_MAX + len("#") + TASK_ID_CHARS_MAX) * 4 // 3  # base64 of both names
UNLISTED_AT_ONCE_MAX: Final = 25  # writes by one read of a page, for agents that older code had listed
OWNED_AGENTS_READ_MAX: Final = 10_000  # of one owner, searched for one that is not retired; some 300 bytes each

# Contents of an answer.
LAMBDA_SYNC_BYTES_MAX: Final = 6_291_556  # Lambda's own limit for request and response of a synchronous invocation
# The longest output returned as text, measured in the JSON of a Lambda response, which escapes an HTTP body's JSON a
# second time: a quotation mark takes 4 bytes there, a control character 7. The rest of the answer, with 64 KiB of
# control characters from stderr, still fits beside it, and a longer output is shorter in base64.
OUTPUT_TEXT_WIRE_BYTES_MAX: Final = 5 * MIB
AUDIT_DIFFERENCES_SHOWN_MAX: Final = 1_000  # in the audit's answer; all are counted and logged
AUDIT_LINE_CHARS_MAX: Final = 300

# Input of a verifier.
TOKEN_CHARS_MAX: Final = 16 * KIB  # of a receipt or a checkpoint; a receipt has about 2,300
JWKS_KEYS_MAX: Final = 1_000
JWKS_AGE_S_MAX: Final = 5 * 60  # how old a published root may be, here and once more in a client's cache
JWKS_FAILURE_S_MAX: Final = 2  # after a failed read of root keys or an issuer's keys, until the next attempt
COUNT_MAX: Final = 2**53  # of any counter in a receipt: JSON numbers are exact up to it
LOG_SIZE_MAX: Final = COUNT_MAX  # entries

# The keys of the issuer whose tokens are accepted.
ISSUER_KEYS_AGE_S_MAX: Final = 5 * 60  # a key that the issuer withdraws is accepted for this much longer
ISSUER_KEYS_REFETCH_S_MIN: Final = 10  # between two reads for tokens without a known key, in one environment

# One execution of the workflow (docs/howto/step-functions.md).
WORKFLOW_STATE_BYTES_MAX: Final = 256 * KIB  # Step Functions' own limit, which ends an execution that grows over it
RUN_ID_CHARS_MAX: Final = 100  # a task's id is the run's id and two numbers
RUN_TASKS_MAX: Final = 48  # their receipts are in the execution's output
RUN_SHARE_MAX: Final = 1_000
RUN_TASK_BYTES: Final = 4 * KIB + 512  # reserved in the output for each task: a receipt and a few fields
RUN_PLAN_BYTES_MAX: Final = WORKFLOW_STATE_BYTES_MAX - RUN_TASK_BYTES  # the rest is for Lambda's response headers
RUN_PASSED_ON_BYTES_MAX: Final = 120 * KIB  # of an output that is another step's input, or one of few outputs

# Money, in micro-credits.
BUDGET_MICRO_MAX: Final = 10**12
AMOUNT_MICRO_MAX: Final = 10**15  # of one deposit, withdrawal or tariff rate; DynamoDB numbers are exact far beyond
BPS: Final = 10_000  # basis points of a whole
FEE_BPS_MAX: Final = BPS

# Resources of an agent.
FUEL_MAX: Final = 10**12
FUEL_PER_CPU_MS: Final = 10**7  # for the meter of a killed run: what real programs use in that time
OUTPUT_BYTES_MAX: Final = MIB
STDERR_BYTES_MAX: Final = 64 * KIB
MEMORY_BYTES_DEFAULT: Final = 256 * MIB
MEMORY_BYTES_MAX: Final = 1024 * MIB
TABLE_ELEMENTS_MAX: Final = 100_000
TIMEOUT_S_MIN: Final = 1
TIMEOUT_S_DEFAULT: Final = 10
TIMEOUT_S_SYNC_MAX: Final = 25
TIMEOUT_S_ASYNC_MAX: Final = 600
JUDGE_TIMEOUT_S_MAX: Final = 10  # with two judges, a synchronous task still has time to run

# Uploads, and the cost of compiling them.
MODULE_BYTES_MAX: Final = 50 * 10**6
ARTEFACT_BYTES_MAX: Final = 200 * 10**6
COMPILE_SECONDS_MAX: Final = 120  # of processor time
COMPILE_WALL_SECONDS_MAX: Final = 150
PUBLISH_SECONDS_MAX: Final = 225  # of one publication: compilation, examples, and 30 s to read and store
COMPILE_MEMORY_BYTES_MAX: Final = 3 * 1024 * MIB
UPLOAD_SECONDS_MAX: Final = 15 * 60
CACHED_ARTEFACT_BYTES_MAX: Final = 400 * MIB  # of the 512 MiB of an environment's /tmp: the largest artefact, twice

# Times of one task.
EXPIRY_REFUND_MS_MAX: Final = 90_000  # no escrow is overdue for longer: the sweep runs every minute
ESCROW_GRACE_MS: Final = 90_000  # an escrow expires this long after the run's latest end: room for one takeover
CALL_MS_MAX: Final = 2_000  # of one call to DynamoDB with all its timeouts: no call is begun with less time left
SETTLE_RESERVE_MS: Final = CALL_MS_MAX  # reserved at the end of an invocation to settle a run that has ended
PAUSED_RETRY_S: Final = 60  # `Retry-After` while funding is paused: the end of the pause is not known
SLOT_RETRY_S_MIN: Final = 2  # bounds of `Retry-After` without a free slot: the time until the first slot lapses
SLOT_RETRY_S_MAX: Final = 30
SLOTS_MAX: Final = 100  # of one account: one read returns them all
SLOT_TRIES_MAX: Final = 4  # for slots that seem free but may be taken by others meanwhile
QUEUE_WAIT_MS_MAX: Final = 15 * 60_000  # of a task in the queue, in addition to the time of its run
ESCROW_MS_MAX: Final = TIMEOUT_S_ASYNC_MAX * 1_000 + ESCROW_GRACE_MS + QUEUE_WAIT_MS_MAX  # from funding to expiry
AGENT_AGE_MS_MAX: Final = 90_000  # of the agent that a task is funded for: 10 s in a cache, 60 s of execute, and clocks
WORK_SECONDS_MAX: Final = 660  # of one invocation of the worker: the longest run, its reserves, and a slow start
KILL_MARGIN_MS: Final = 200  # after a guest's deadline, until the parent process kills it

# The queue of tasks.
QUEUE_MESSAGE_BYTES_MAX: Final = 128 * KIB  # S3 is cheaper for larger inputs: SQS bills each 64 KiB and takes 1 MiB
DEAD_LETTER_HIDDEN_S: Final = 15 * 60  # until an unreadable dead letter is tried and logged again

# The ledger.
OUTPUT_INLINE_BYTES_MAX: Final = KIB  # larger outputs go to S3: each write of an item is billed by its whole size
TRANSACTION_ITEMS_MAX: Final = 100  # DynamoDB's own limit
LOGGED_AGENTS_MAX: Final = 60  # of one batch: their standings, up to 64 KiB each, must fit in one write of 4 MB
SWEPT_ALONE_MAX: Final = 2_000  # items of one step that a sweep processes without drains: its part of each work shard
REFUNDED_ALONE_MAX: Final = 200  # the same for refunds, which take longest
DRAIN_START_MS_MAX: Final = 15_000  # a backlog that is unchanged for this long is not being drained
CREDITED_AT_ONCE_MAX: Final = 500  # escrows that are grouped by owner before they are credited
APPEND_BYTES_MAX: Final = 3_900_000  # of several batches in one append to the log: DynamoDB's limit is 4 MB
BATCH_GET_ITEMS_MAX: Final = 100  # DynamoDB's own limit
LOGGED_AT_ONCE_MAX: Final = BATCH_GET_ITEMS_MAX - 1  # batches that are read before some are appended: with the head
STANDINGS_KEPT_BYTES_MAX: Final = 8_000_000  # as stored; in memory they take about eight times as much
CALLS_AT_ONCE_MAX: Final = 8  # of one sweep
# From the last retirement to a release. Escrows funded meanwhile have expired then, so they can only be refunded as the
# platform's fault, which charges no bond; those settled before are in the index. A publication has ended long before.
BOND_NOTICE_MS: Final = AGENT_AGE_MS_MAX + ESCROW_MS_MAX
BUNDLE_ESCROWS_MIN: Final = 256  # of one bundle of the archive, which has whole batches; some 3.8 KB each
BUNDLE_BYTES_MAX: Final = 512 * MIB  # of a bundle: far more than its escrows can have, 400 KB each
# No escrow is archived earlier. A restore of the table goes back 35 days at most. So what happens after a restore in
# place of what was lost never has a bundle already, and a bundle always has the escrows of its positions.
ARCHIVE_AFTER_DAYS_MIN: Final = 40
ARCHIVE_AFTER_DAYS_MAX: Final = 9_999
BALANCE_SHARDS: Final = 16  # items over which an account's credits are spread; see ledger/balances.py
# Keys over which the open tasks of one account are spread in the index `open`. DynamoDB takes 1,000 writes a second of
# one key, and throttles the table if its index is throttled; a task of a hot agent makes two. Never lower it.
PARTY_SHARDS: Final = 8

# Payment channels (docs/howto/channels.md).
CHANNEL_TICKETS_MAX: Final = 10_000  # at opening, and of one top-up
TICKET_NUMBER_MAX: Final = 10**6  # of one channel: closing it reads every number that was granted
TICKETS_PER_TASK_MAX: Final = 90  # consecutive ones that one task may take: all in one transaction
TICKETS_PER_JUDGED_TASK_MAX: Final = 80  # beside them, two judges and all shards of a bond are written
TICKET_CHARS_MAX: Final = 4 * KIB  # of one signed ticket; with all its claims it has about 900
TICKET_KID_CHARS_MAX: Final = 256  # of the `kid` that some libraries write into the header of a ticket
TICKET_AHEAD_S_MAX: Final = 366 * 24 * 60 * 60  # how far in the future a ticket, or a closing order, may expire
CHANNEL_AGENTS_MAX: Final = 20
CHANNEL_SALT_CHARS_MAX: Final = 64
CHANNEL_DAYS_MAX: Final = 366  # from opening to expiry
CHANNEL_AGE_S_MAX: Final = 10  # how old a channel may be that a ticket is checked against
CHANNEL_CLOSE_MS: Final = 90_000  # from the request to the count: the execute function's 60 s, that age, and clocks
CONTESTS_MAX: Final = 10  # runs of one payer in CONTEST_MS that nobody paid; then its tickets are held first
CONTEST_MS: Final = 24 * 60 * 60 * 1_000
CHANNEL_GRANT_FIRST: Final = 8  # numbers that a new channel may use at once
CHANNEL_GRANT_MAX: Final = 100  # numbers that one grant adds at most: one transaction can mark them

# The audit.
UNSWEPT_MS_MAX: Final = 15 * 60_000  # from settlement to credit: the sweep runs every minute, its alarm takes five
UNLOGGED_MS_MAX: Final = 15 * 60_000  # from credit to a place in the log
UNPUBLISHED_MS_MAX: Final = 30 * 60_000  # from credit to a checkpoint that covers the receipt
UNCLOSED_MS_MAX: Final = 15 * 60_000  # from each step of a channel's closing to the next: the sweep runs every minute
AUDIT_RECENT_MS: Final = 20 * 60_000  # older items in a final state do not change: 15 min and the skew of clocks
# Parts of an audit that run in invocations of their own (docs/ledger.md). A step of a part is one invocation, and keeps
# in memory what it found in so many receipts or items; a comparison keeps one partition of all accounts and agents.
AUDIT_PART_RECEIPTS: Final = 100_000  # of the log, for each part of its walk, and for each segment of the table
AUDIT_PARTITION_RECEIPTS: Final = (
    500_000  # of the log, for each partition of the accounts, channels, agents and batches
)
AUDIT_PARTS_MAX: Final = 128  # of each kind: a state with all parts, twice, stays below the 256 KiB of Step Functions
AUDIT_STEP_RECEIPTS_MAX: Final = 20_000  # of the log, in one step
AUDIT_STEP_ITEMS_MAX: Final = 50_000  # of the table, in one step, and those of the last page
AUDIT_STEPS_MAX: Final = 10_000  # of one part: only a part that does not end has more
AUDIT_STEP_RESERVE_MS: Final = 20_000  # of an invocation, for what follows the last piece of work: writing the result
AUDIT_COMPARED_MAX: Final = 1_000_000  # entries of one partition; with more, the comparison fails
AUDIT_REPORT_LINES_MAX: Final = 60  # in the state machine's output: 216 KB if each character is escaped as two
AUDIT_STANDINGS_MAX: Final = 24  # read in one transaction: with 64 KiB each well below its 4 MB

# Modules: counts that bound the cost of validating, compiling and loading one (docs/sandbox.md describes the attacks).
MODULE_FUNCTIONS_MAX: Final = 100_000
MODULE_BODY_BYTES_MAX: Final = 2 * MIB  # of the largest function: the compiler's cost grows faster than its length
MODULE_ITEMS_MAX: Final = 100_000  # types, globals, data segments, element segments: of each
MODULE_SECTIONS_MAX: Final = 1_000
MODULE_IMPORTS_MAX: Final = 1_000
MODULE_EXPORTS_MAX: Final = 10_000
MODULE_ELEMENT_BYTES_MAX: Final = 4 * MIB
MODULE_TYPE_VALUES_MAX: Final = 1_000  # the engine's own limit
MODULE_TABLES_MAX: Final = 4
MODULE_NAME_BYTES_MAX: Final = 64 * KIB  # of a function, an import, an export, a custom section

# The sandbox's worker.
LOAD_MS_MAX: Final = 5_000  # to start a worker and load an artefact, before the guest's own time begins
WORKER_MODULE_BYTES_MAX: Final = 128 * MIB  # artefacts kept loaded; a single larger one is kept alone
WORKER_MODULES_MAX: Final = 64  # artefacts kept loaded, however small: each has mappings and perhaps a descriptor
WORKER_RSS_BYTES_MAX: Final = 384 * MIB  # between two runs; a larger worker is replaced
WORKER_RUNS_MAX: Final = 10_000  # then the worker is replaced, so that slow leaks cannot add up
WORKER_DATA_BYTES_MAX: Final = MEMORY_BYTES_MAX + 2 * ARTEFACT_BYTES_MAX + WORKER_MODULE_BYTES_MAX + 256 * MIB
MESSAGE_CHARS_MAX: Final = 2_000  # of the sentence, with backtrace, that says how a run ended
RANDOM_PIECE_BYTES: Final = 64 * KIB  # `random_get` generates bytes in pieces of this size, to bound its memory
POLL_SUBSCRIPTIONS_MAX: Final = 64
IOVECS_MAX: Final = 1_024

# The cost of a host call, in addition to the guest's instructions: see docs/adr/0019.
HOST_CALL_FUEL: Final = 10_000
HOST_BUFFER_FUEL: Final = 2_000  # each buffer of a list, each subscription of a poll
RANDOM_BYTE_FUEL: Final = 50
WAIT_FUEL_MAX: Final = 2_000  # a guest that uses more between two reads of the clock does not only wait

# Rules for outputs, and the cost of checking an output against them (see docs/acceptance.md).
SCHEMA_BYTES_MAX: Final = 16 * KIB  # in canonical JSON; the other rules are small by their form
ACCEPTANCE_STEPS_MAX: Final = 600_000  # of one side's rules: at most half a second of the platform's time
VERDICT_MS_MAX: Final = 3_000  # to compile both sides' rules and check the output: see the table of docs/acceptance.md
SCHEMA_DEPTH_MAX: Final = 200  # schemas applied inside one another: what waits for others is memory that no step counts
PATTERN_WEIGHT_MAX: Final = 1_000  # of all regular expressions of one schema, counted repetitions written out
PATTERN_BYTES_PER_STEP: Final = 64  # text times weight that the regular expression engine processes in one step
NUMBER_CHARS_MAX: Final = 100  # of one JSON number that is read exactly
NUMBER_EXPONENT_MAX: Final = 400  # in notation with one digit before the point; doubles end at 308
SCORE_BYTES_MAX: Final = 64  # of a judge's output
JUDGE_INPUT_BYTES_MAX: Final = 2 * (INPUT_BYTES_MAX + OUTPUT_BYTES_MAX) + 64  # JSON takes at most two bytes per byte
STDIN_BYTES_MAX: Final = JUDGE_INPUT_BYTES_MAX  # of any run: a task's input is smaller

# The contract of an agent: what it takes and gives, and the examples that its publication runs (docs/contract.md).
CONTRACT_BYTES_MAX: Final = 64 * KIB  # in canonical JSON
EXAMPLES_MAX: Final = 20
EXAMPLE_NAME_CHARS_MAX: Final = 64
TAGS_MAX: Final = 10
TAG_CHARS_MAX: Final = 32
LICENCE_CHARS_MAX: Final = 100
SOURCE_URL_CHARS_MAX: Final = 1_000
EXIT_CODE_MAX: Final = 2**32 - 1  # WASI's own limit
INPUT_STEPS_MIN: Final = 10_000  # to check one input, however short it is (see docs/contract.md)
INPUT_BYTES_PER_STEP: Final = 3  # a longer input may take more steps: reading it costs more too
EXAMPLES_FUEL_MAX: Final = 10**11  # of all examples of one publication: some ten seconds of a processor
EXAMPLES_SECONDS_MAX: Final = 30  # of all examples of one publication, loading included
REJECTION_CHARS_MAX: Final = 1_000  # of the sentence that says why an example failed
CARD_BYTES_MAX: Final = 128 * KIB  # of an A2A agent card that a verifier reads
CARD_EXAMPLE_CHARS_MAX: Final = 1_000  # longer inputs are left out of the A2A card: the native card has them

# Webhooks.
WEBHOOK_URL_CHARS_MAX: Final = 2_000
WEBHOOK_CONNECT_MS_MAX: Final = 3_000
WEBHOOK_MS_MAX: Final = 10_000  # from the connection to the response's status; then the connection is closed
WEBHOOK_ANSWER_BYTES_MAX: Final = 64 * KIB  # to the end of the final response's headers, with interim responses
WEBHOOK_TRIES_MAX: Final = 15  # the queue's maxReceiveCount: crashes count too
WEBHOOK_WAIT_S_MIN: Final = 5  # before the second attempt; doubles with each
WEBHOOK_WAIT_S_MAX: Final = 60 * 60
WEBHOOK_AGE_MS_MAX: Final = 5 * 60 * 1_000  # between a receiver's clock and the signature's time
EVENT_BYTES_MAX: Final = MIB  # EventBridge's own limit for the entries of one call (256 KiB before January 2026)

# Traces.
TRACE_STEPS_MAX: Final = 100  # of one invocation: a long sweep must not flood its trace

# Listings: runs of an agent, tasks of an account, and the index of agents (see store/listings.py).
LISTING_SHARDS: Final = 4  # partitions over which the rows of one agent or account are spread; never lower it
LISTING_READ_MAX: Final = 200  # rows that one page reads in each partition to find those that pass its filters
LISTING_MS_MAX: Final = 10**13 - 1  # a time in a key has 13 digits: until the year 2286
AGENT_WORDS_MAX: Final = 20  # of an agent's name, tags and description, in this order: each has a row in the index
AGENT_TAGS_MAX: Final = 10  # of one agent in the index
WORD_CHARS_MAX: Final = 32  # of a word in the index; the rest of a longer one is not compared
QUERY_CHARS_MAX: Final = 200  # of the text of a search
QUERY_WORDS_MAX: Final = 8
BACKFILL_PIECES_MAX: Final = 1_000  # of one invocation, which ends earlier if its time does
BACKFILL_PIECE_ITEMS: Final = 25  # read by one scan, and listed before the next
