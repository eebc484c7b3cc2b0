"""What merchants answer to a retry, and the verdict on each answer."""

from payagent.dialects import RetryVerdict

PAYLOAD = "invalid_exact_cardano_payload"
CATALOGUE = {
    RetryVerdict.REFUSED: [
        "unsupported_scheme",
        "network_mismatch",
        PAYLOAD,
        *(
            f"{PAYLOAD}_{word}"
            for word in (
                *("unsupported_version", "transaction_decode_failed", "network_id_mismatch", "recipient_mismatch"),
                *("asset_mismatch", "amount_insufficient", "nonce_invalid", "nonce_not_in_inputs", "ttl_expired"),
                *("unsigned", "invalid_signature", "phase1_invalid", "phase2_invalid"),
                *("value_not_conserved", "fee_below_minimum", "min_utxo_insufficient", "script_address_mismatch"),
                *("payer_not_witness", "script_datum_missing", "masumi_contract_mismatch", "masumi_datum_missing"),
                *("masumi_datum_invalid", "masumi_datum_mismatch", "masumi_deadline", "masumi_collateral"),
                *("masumi_min_utxo", "masumi_reference_script", "masumi_asset", "masumi_escrow_output_count"),
            )
        ),
        "invalid_exact_cardano_requirements",
        "invalid_exact_cardano_requirements_policy",
        "invalid_exact_cardano_requirements_masumi_schema",
        "exact_cardano_settlement_definitively_rejected",
        "masumi_terms_unknown",
        "masumi_terms_mismatch",
        *(f"request_commitment_{word}" for word in ("unsigned", "malformed", "mismatch", "missing")),
        "No matching payment requirements",
    ],
    RetryVerdict.UNCLEAR: [
        f"{PAYLOAD}_nonce_not_on_chain",
        f"{PAYLOAD}_input_not_available",
        f"{PAYLOAD}_not_yet_valid",
        f"{PAYLOAD}_ttl_too_far",
        f"{PAYLOAD}_verification_error",
        f"{PAYLOAD}_evidence_mismatch",
        "exact_cardano_facilitator_chain_lookup_failed",
        "exact_cardano_facilitator_evidence_unavailable",
        "exact_cardano_facilitator_input_value_unavailable",
        "exact_cardano_settlement_failed",
        "exact_cardano_settlement_not_confirmed",
        "unexpected_settle_error",
        "Facilitator settle failed (502): Bad Gateway",
        "",
        "a word of next year",
        "request_commitment_of_next_year",
    ],
    RetryVerdict.USED_UP: ["duplicate_settlement"],
    RetryVerdict.PENDING: ["settlement_pending"],
}
