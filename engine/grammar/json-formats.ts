/**
 * Formats of JSON Schema as patterns of strings that need no escape in JSON; each text is one of the format, but for dates
 * that no calendar has and for host names that are too long for DNS.
 */
const DATE = '[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])'
const TIME = '([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])'
const LABELS = '[a-z0-9]+(-[a-z0-9]+)*(\\.[a-z0-9]+(-[a-z0-9]+)*)*'
const BYTE = '(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])'

/** By name. */
export const FORMATS: ReadonlyMap<string, string> = new Map([
  ['date', DATE],
  ['time', TIME],
  ['date-time', `${DATE}T${TIME}`],
  ['duration', 'P([0-9]{1,6}W|[0-9]{1,6}D|([0-9]{1,6}D)?T([0-9]{1,6}H([0-9]{1,6}M)?|[0-9]{1,6}M)([0-9]{1,6}S)?)'],
  ['email', `[a-z0-9_+-]+(\\.[a-z0-9_+-]+)*@${LABELS}\\.[a-z]{2,12}`],
  ['hostname', LABELS],
  ['ipv4', `(${BYTE}\\.){3}${BYTE}`],
  ['uri', `[a-z][a-z0-9+.-]*://${LABELS}(:[0-9]{1,5})?(/[A-Za-z0-9._~-]*)*`],
  ['uuid', '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'],
])

/** Formats of the specification without a pattern; others than these and those assert nothing. */
export const UNKEPT_FORMATS: ReadonlySet<string> = new Set([
  'ipv6',
  'idn-email',
  'idn-hostname',
  'uri-reference',
  'iri',
  'iri-reference',
  'uri-template',
  'json-pointer',
  'relative-json-pointer',
  'regex',
])
