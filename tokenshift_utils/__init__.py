"""Token-level distributional shifts of RLVR fine-tuning: measures, records, tables, figures."""
