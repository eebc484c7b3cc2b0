"""Providers' answers to a submission, as they word them, and what each one means."""

import json
from typing import Any

from payagent.chain.provider import SubmitKind
from payagent.chain.submit_answers import RawAnswer, TransportError

TX = "ab" * 31 + "0f"
OTHER = "99" * 32
DIGITS = "1" * 64
INFINITE = "12e55" + "1" * 59
K = SubmitKind


def raw(status: int, body: Any = b"", **fields: Any) -> RawAnswer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RawAnswer(status=status, body=content, **fields)


def blockfrost(status: int, error: str, message: Any) -> RawAnswer:
    return raw(status, {"status_code": status, "error": error, "message": message})


def conway(*failures: str) -> dict[str, Any]:
    """cardano-submit-api's object since Conway."""
    inner = {"kind": "ShelleyTxValidationError", "era": "ShelleyBasedEraConway", "error": list(failures)}
    validation = {"tag": "TxValidationErrorInCardanoMode", "contents": inner}
    return {"tag": "TxSubmitFail", "contents": {"tag": "TxCmdTxSubmitValidationError", "contents": validation}}


def in_string(*failures: str) -> RawAnswer:
    """As blockfrost.io relays it: JSON inside the message."""
    return blockfrost(400, "Bad Request", json.dumps(conway(*failures)))


def as_object(*failures: str) -> RawAnswer:
    return blockfrost(400, "Bad Request", conway(*failures))


def ogmios(code: int, data: Any = None, message: str = "see data", status: int = 400) -> RawAnswer:
    error = {"code": code, "message": message, "data": data}
    return raw(status, {"jsonrpc": "2.0", "method": "submitTransaction", "error": error, "id": None})


BAD_INPUTS = (
    f'ConwayUtxowFailure (UtxoFailure (BadInputsUTxO (fromList [TxIn (TxId {{unTxId = SafeHash "{OTHER}"}}) '
    "(TxIx {unTxIx = 1})])))"
)
NO_VALUE = (
    "ConwayUtxowFailure (UtxoFailure (ValueNotConservedUTxO (MaryValue (Coin 0) (MultiAsset (fromList []))) "
    "(MaryValue (Coin 9920718377) (MultiAsset (fromList [])))))"
)
NO_VALUE_MISMATCH = (
    "ConwayUtxowFailure (UtxoFailure (ValueNotConservedUTxO (Mismatch {mismatchSupplied = MaryValue (Coin 0) "
    "(MultiAsset (fromList [])), mismatchExpected = MaryValue (Coin 5000000) (MultiAsset (fromList []))})))"
)
SOME_VALUE = NO_VALUE.replace("Coin 0", "Coin 1313258532")
SOME_VALUE_MISMATCH = NO_VALUE_MISMATCH.replace("Coin 0", "Coin 10")
EXPIRED = (
    "ConwayUtxowFailure (UtxoFailure (OutsideValidityIntervalUTxO (ValidityInterval {invalidBefore = SNothing, "
    "invalidHereafter = SJust (SlotNo 10000)}) (SlotNo 27995504)))"
)
ALL_SPENT = 'ConwayMempoolFailure "All inputs are spent. Transaction has probably already been included"'
ALONZO_SPENT = (
    '"transaction submit error ShelleyTxValidationError ShelleyBasedEraAlonzo (ApplyTxError [UtxowFailure '
    "(WrappedShelleyEraFailure (UtxoFailure (ValueNotConservedUTxO (Value 0 (fromList [])) "
    "(Value 9000000 (fromList []))))),UtxowFailure (WrappedShelleyEraFailure (UtxoFailure (BadInputsUTxO "
    '(fromList [TxInCompact (TxId {_unTxId = SafeHash \\"0f30\\"}) 0]))))])"'
)
BABBAGE_SOME = (
    "transaction submit error ShelleyTxValidationError ShelleyBasedEraBabbage (ApplyTxError [UtxowFailure "
    "(UtxoFailure (AlonzoInBabbageUtxoPredFailure (ValueNotConservedUTxO (MaryValue 87325173 (MultiAsset "
    "(fromList []))) (MaryValue 94040153 (MultiAsset (fromList [])))))),UtxowFailure (UtxoFailure "
    "(AlonzoInBabbageUtxoPredFailure (BadInputsUTxO (fromList []))))])"
)
BODY_ERROR = 'DecoderErrorDeserialiseFailure "Shelley Tx" (DeserialiseFailure 0 "expected list len or indef")'
HTML = b"<!DOCTYPE html><html><head><title>%s</title></head><body>cloudflare</body></html>"
ANSWERS: dict[str, tuple[RawAnswer, SubmitKind]] = {
    # success, in every form
    "json string": (raw(200, TX), K.ACCEPTED),
    "plain text (Dolos)": (raw(200, TX.encode()), K.ACCEPTED),
    "white space": (raw(200, f'  "{TX}"\r\n'.encode()), K.ACCEPTED),
    "new line": (raw(200, f"{TX}\n".encode()), K.ACCEPTED),
    "byte order mark": (raw(200, f'\ufeff"{TX}"'.encode()), K.ACCEPTED),
    "upper case": (raw(200, TX.upper()), K.ACCEPTED),
    "upper case, plain": (raw(200, TX.upper().encode()), K.ACCEPTED),
    "quoted twice": (raw(200, json.dumps(TX)), K.ACCEPTED),
    "escaped": (raw(200, f'"\\u0061{TX[1:]}"'.encode()), K.ACCEPTED),
    "202 (Yaci Store)": (raw(202, TX), K.ACCEPTED),
    "202, plain": (raw(202, TX.encode()), K.ACCEPTED),
    # success that does not name our transaction
    "other id": (raw(200, OTHER), K.LIAR),
    "other id, plain": (raw(200, OTHER.encode()), K.LIAR),
    "other id, all digits": (raw(200, DIGITS.encode()), K.LIAR),
    "other id, a number": (raw(200, int(DIGITS)), K.LIAR),
    "other id, infinite as a number": (raw(200, INFINITE.encode()), K.LIAR),
    "id with a tail": (raw(200, TX + "00"), K.LIAR),
    "ok": (raw(200, {"ok": True}), K.LIAR),
    "true": (raw(200, True), K.LIAR),
    "null": (raw(200, None), K.LIAR),
    "list": (raw(200, [TX]), K.LIAR),
    "captive portal": (raw(200, HTML % b"Log in"), K.LIAR),
    "200 with an error": (raw(200, {"status_code": 400, "error": "Bad Request", "message": "x"}), K.LIAR),
    # success whose answer broke off
    "empty": (raw(200), K.AMBIGUOUS),
    "204": (raw(204), K.AMBIGUOUS),
    "half an id": (raw(200, TX[:30].encode()), K.AMBIGUOUS),
    "half a string": (raw(200, f'"{TX[:30]}'.encode()), K.AMBIGUOUS),
    "no closing quote": (raw(200, f'"{TX}'.encode()), K.AMBIGUOUS),
    "cut object": (raw(200, b'{"tx": "ab'), K.AMBIGUOUS),
    "cut list": (raw(200, f'["{TX}"'.encode()), K.AMBIGUOUS),
    "our id, but cut": (raw(200, TX.encode(), error=TransportError.TRUNCATED), K.AMBIGUOUS),
    "too big": (raw(200, b"a" * 100_000, error=TransportError.TOO_BIG), K.AMBIGUOUS),
    # spent inputs
    "all spent, in string": (in_string(ALL_SPENT), K.SPENT_ALL),
    "all spent, object": (as_object(ALL_SPENT), K.SPENT_ALL),
    "all spent, plain text": (raw(400, ALL_SPENT.encode()), K.SPENT_ALL),
    "all spent, Dijkstra": (as_object("DijkstraMempoolFailure AllInputsAreSpent"), K.SPENT_ALL),
    "all spent, Ogmios": (ogmios(3997, {"unexpectedError": ALL_SPENT}), K.SPENT_ALL),
    "all spent, Yaci 500": (raw(500, {"status": 500, "message": ALL_SPENT}), K.SPENT_ALL),
    "bad inputs, zero value": (in_string(NO_VALUE, BAD_INPUTS), K.SPENT_ALL),
    "bad inputs, mismatch zero": (as_object(BAD_INPUTS, NO_VALUE_MISMATCH), K.SPENT_ALL),
    "bad inputs, Alonzo": (blockfrost(400, "Bad Request", ALONZO_SPENT), K.SPENT_ALL),
    "bad inputs alone": (as_object(BAD_INPUTS), K.SPENT_ALL),
    "bad inputs and expired": (as_object(BAD_INPUTS, NO_VALUE, EXPIRED), K.SPENT_ALL),
    "bad inputs and no witness": (as_object("MissingVKeyWitnessesUTXOW", BAD_INPUTS, NO_VALUE), K.SPENT_ALL),
    "bad inputs, platform's details": (
        raw(400, {"error": "Bad Request", "message": "TxSubmitFail", "details": conway(NO_VALUE, BAD_INPUTS)}),
        K.SPENT_ALL,
    ),
    "Ogmios 3117": (
        ogmios(3117, {"unknownOutputReferences": [{"transaction": {"id": OTHER}, "index": 0}]}),
        K.SPENT_ALL,
    ),
    "Ogmios 3117, escaped twice": (
        blockfrost(400, "Bad Request", json.dumps(json.dumps({"error": {"code": 3117}}))),
        K.SPENT_ALL,
    ),
    "Ogmios 3123 of nothing": (
        ogmios(3123, {"valueConsumed": {"ada": {"lovelace": 0}}, "valueProduced": {"ada": {"lovelace": 3567525}}}),
        K.SPENT_ALL,
    ),
    "409 (Dolos)": (raw(409), K.SPENT_ALL),
    "bad inputs, some value": (in_string(BAD_INPUTS, SOME_VALUE), K.SPENT_SOME),
    "bad inputs, mismatch some": (as_object(BAD_INPUTS, SOME_VALUE_MISMATCH), K.SPENT_SOME),
    "bad inputs, Babbage": (blockfrost(400, "Bad Request", BABBAGE_SOME), K.SPENT_SOME),
    "not conserved": (as_object(SOME_VALUE), K.SPENT_SOME),
    "Ogmios 3123": (
        ogmios(
            3123,
            {"valueConsumed": {"ada": {"lovelace": 3800000}}, "valueProduced": {"ada": {"lovelace": 3567525}}},
            "The field 'data.valueConsumed' contains the total 'in balance', 0 or more.",
        ),
        K.SPENT_SOME,
    ),
    # the validity interval
    "expired, in string": (in_string(EXPIRED), K.EXPIRED),
    "expired, object": (as_object(EXPIRED), K.EXPIRED),
    "expired, Mary": (raw(400, f"Error while submitting tx: {EXPIRED}".encode()), K.EXPIRED),
    "Ogmios 3118": (ogmios(3118, {"validityInterval": {"invalidAfter": 10}, "currentSlot": 20}), K.EXPIRED),
    # bytes that can never be valid
    "fee": (in_string("ConwayUtxowFailure (UtxoFailure (FeeTooSmallUTxO (Coin 168000) (Coin 1)))"), K.NEVER),
    "min-UTxO, Babbage": (as_object("BabbageOutputTooSmallUTxO [(TxOut,Coin 969750)]"), K.NEVER),
    "min-UTxO, Shelley": (raw(400, b"OutputTooSmallUTxO [...]"), K.NEVER),
    "size": (as_object("MaxTxSizeUTxO 20000 16384"), K.NEVER),
    "value size": (as_object("OutputTooBigUTxO [(6000,5000)]"), K.NEVER),
    "witness": (in_string("ConwayUtxowFailure (MissingVKeyWitnessesUTXOW (fromList []))"), K.NEVER),
    "signature": (in_string("ConwayUtxowFailure (InvalidWitnessesUTXOW [])"), K.NEVER),
    "network": (as_object("WrongNetwork Mainnet (fromList [])"), K.NEVER),
    "network id": (as_object("WrongNetworkInTxBody Mainnet Testnet"), K.NEVER),
    "decoder": (blockfrost(400, "Bad Request", json.dumps({"contents": [BODY_ERROR]})), K.NEVER),
    "name escaped": (raw(400, b'{"message": "\\u0046eeTooSmallUTxO"}'), K.NEVER),
    "name after an escape": (raw(400, b'{"message": "x\\nFeeTooSmallUTxO"}'), K.NEVER),
    "no inputs": (as_object("ConwayUtxowFailure (UtxoFailure InputSetEmptyUTxO)"), K.NEVER),
    "a rule beside a long number": (raw(400, b'{"error": "FeeTooSmallUTxO", "at": %s}' % (b"9" * 5000)), K.NEVER),
    "Ogmios 3100": (ogmios(3100), K.NEVER),
    "Ogmios 3101": (ogmios(3101), K.NEVER),
    "Ogmios 3119": (ogmios(3119), K.NEVER),
    "Ogmios 3120": (ogmios(3120), K.NEVER),
    "Ogmios 3121": (ogmios(3121), K.NEVER),
    "Ogmios 3122": (ogmios(3122), K.NEVER),
    "Ogmios 3124": (ogmios(3124), K.NEVER),
    "Ogmios 3125": (ogmios(3125), K.NEVER),
    "Ogmios -32602": (ogmios(-32602), K.NEVER),
    # mempool
    "425": (blockfrost(425, "Mempool Full", "Mempool is full, please try resubmitting again later."), K.FULL),
    "425 that says nothing": (raw(425), K.FULL),
    "full, by its title": (raw(400, {"error": "Mempool Full"}), K.FULL),
    "full, as 400": (blockfrost(400, "Bad Request", "Mempool is full, please try again"), K.FULL),
    "full, as 503": (raw(503, b"MempoolFull"), K.FULL),
    # limits; 402 is the daily quota of the project, never an invoice
    "429": (blockfrost(429, "Project Over Limit", "Usage is over limit."), K.RATE),
    "402": (blockfrost(402, "Project Over Limit", "Usage is over limit."), K.QUOTA),
    "402 that looks like an invoice": (raw(402, {"detail": {"invoiceId": "i", "amountUnits": "1"}}), K.QUOTA),
    "402 that names a rule": (blockfrost(402, "x", BAD_INPUTS), K.QUOTA),
    "418": (blockfrost(418, "Requested Banned", "IP has been auto-banned for flooding."), K.QUOTA),
    "429 cut": (raw(429, b'{"status', error=TransportError.TRUNCATED), K.RATE),
    # access
    "403": (blockfrost(403, "Forbidden", "Invalid project token."), K.AUTH),
    "403, network": (blockfrost(403, "Forbidden", "Network token mismatch."), K.AUTH),
    "403, html": (raw(403, HTML % b"Forbidden"), K.AUTH),
    "401": (raw(401), K.AUTH),
    # our own mistakes, and refusals without a class
    "address": (
        blockfrost(400, "Bad Request", "Invalid address for this network or malformed address format."),
        K.CLIENT,
    ),
    "path": (blockfrost(400, "Bad Request", "Invalid path. Please check https://docs.blockfrost.io/"), K.CLIENT),
    "400 bare (Dolos)": (raw(400), K.CLIENT),
    "400 html": (raw(400, HTML % b"Bad Request"), K.CLIENT),
    "404": (blockfrost(404, "Not Found", "The requested component has not been found."), K.CLIENT),
    "405": (raw(405), K.CLIENT),
    "413": (raw(413, HTML % b"Request Entity Too Large"), K.CLIENT),
    "415": (raw(415, {"message": "Unsupported Media Type"}), K.CLIENT),
    "rule without a class": (in_string("ConwayUtxowFailure (PPViewHashesDontMatch SNothing)"), K.CLIENT),
    "Ogmios without a class": (ogmios(3997, {"size": 0, "timeout": 0}), K.CLIENT),
    "code in another number": (raw(400, {"code": 31171, "at": 3117}), K.CLIENT),
    "300": (raw(300, TX), K.CLIENT),
    "301": (raw(301, HTML % b"Moved"), K.CLIENT),
    "308": (raw(308), K.CLIENT),
    # the provider is down
    "500": (
        blockfrost(500, "Internal Server Error", "An unexpected response was received from the backend."),
        K.OUTAGE,
    ),
    "500 that says 404": (raw(500, {"status_code": 404, "error": "Not Found", "message": "x"}), K.OUTAGE),
    "502": (raw(502, HTML % b"Bad gateway"), K.OUTAGE),
    "503": (raw(503), K.OUTAGE),
    "520": (raw(520, HTML % b"520"), K.OUTAGE),
    "521": (raw(521, HTML % b"Web server is down"), K.OUTAGE),
    "522": (raw(522, HTML % b"Connection timed out"), K.OUTAGE),
    "525": (raw(525, HTML % b"SSL handshake failed"), K.OUTAGE),
    "500 cut": (raw(500, b'{"status_code": 5'), K.OUTAGE),
    "refused": (RawAnswer(error=TransportError.CONNECT, body_sent=False), K.OUTAGE),
    "certificate": (RawAnswer(error=TransportError.TLS, body_sent=False), K.OUTAGE),
    "time-out before sending": (RawAnswer(error=TransportError.TIMEOUT, body_sent=False), K.OUTAGE),
    "reset before sending": (RawAnswer(error=TransportError.RESET, body_sent=False), K.OUTAGE),
    # anything may have happened
    "time-out": (RawAnswer(error=TransportError.TIMEOUT), K.AMBIGUOUS),
    "reset": (RawAnswer(error=TransportError.RESET), K.AMBIGUOUS),
    "TLS broke": (RawAnswer(error=TransportError.TLS), K.AMBIGUOUS),
    "nothing": (RawAnswer(), K.AMBIGUOUS),
    "400 cut": (raw(400, f'{{"message": "{BAD_INPUTS[:60]}'.encode()), K.AMBIGUOUS),
    "400 cut list": (raw(400, f'["{BAD_INPUTS[:60]}'.encode()), K.AMBIGUOUS),
    "400 cut string": (raw(400, f'"{BAD_INPUTS[:60]}'.encode()), K.AMBIGUOUS),
    "400 cut by transport": (raw(400, b"BadInputsUTxO", error=TransportError.TRUNCATED), K.AMBIGUOUS),
    "400 too big": (raw(400, b"x", error=TransportError.TOO_BIG), K.AMBIGUOUS),
    "408": (raw(408), K.AMBIGUOUS),
    "504": (raw(504, HTML % b"Gateway time-out"), K.AMBIGUOUS),
    "524": (raw(524, HTML % b"A timeout occurred"), K.AMBIGUOUS),
    "100": (raw(100), K.AMBIGUOUS),
    "600": (raw(600), K.AMBIGUOUS),
    "999": (raw(999), K.AMBIGUOUS),
}
