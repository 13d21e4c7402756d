"""Molmo2's styles: what kind of question a message is, and so how the prompt writes it."""

import difflib

MULTIPLE_CHOICE_STYLES = frozenset(
    {
        *("video_multiple_choice", "video_multiple_choice_w_subtitle"),
        *("video_multiple_choice_count_without_pointing", "video_multiple_choice_multiple_correct"),
        *("a_okvqa_mc", "ai2_diagram_no_letter", "ai2_diagram", "science_qa"),
        *("multi_image_mc", "multi_image_mc_exp", "mantis_instruct_mc", "eval_multi_image_mc"),
    }
)
PREFIX_FREE_STYLES = MULTIPLE_CHOICE_STYLES | {
    *("user_qa", "correction_qa", "text_sft"),
    *("long_caption", "short_caption", "video_long_caption", "video_short_caption"),
    *("video_transcript", "video_clip_caption_start_end", "video_clip_caption_start_end_in_seconds"),
    *("video_clip_transcript_start_end", "video_clip_transcript_start_end_in_seconds"),
    *("video_frame_caption_timestamp", "video_frame_caption_timestamp_in_seconds"),
    *("pointing", "point_count", "cosyn_point", "video_point", "video_point_count", "video_count", "video_count_point"),
    *("multi_image_pointing", "multi_image_counting", "multi_image_point_then_count", "multi_image_count_then_point"),
    *("video_point_track_per_frame", "video_point_track_start_end", "video_point_track_all_frames"),
    "video_single_point_track_start_end",
}
# Their answers are a word or a few. Options, where there are any, are the answers that can be right: for scoring alone.
SHORT_ANSWER_STYLES = frozenset(
    {
        *("video_short_answer", "video_short_answer_count_without_pointing"),
        *("vqa2", "gqa", "okvqa", "a_okvqa_da", "text_vqa", "ocr_vqa", "st_qa", "tally_qa", "tabwmp_da", "point_qa"),
        *("chart_qa", "doc_qa", "info_qa", "dv_qa", "figure_qa", "plot_qa", "scifi_charts", "scifi_charts_qa"),
        *("mantis_instruct_da", "multi_image_da", "eval_multi_image_da", "synthetic_qa"),
        *("kinetics_label", "moments_in_time_label", "coin_label", "youcook2_label", "activitynet_label"),
        *("epic_kitchens_label", "ego4d_mq_label_clip", "ego4d_mq_label_start_end"),
    }
)
EVALUATION_STYLES = {
    "video_eval_multiple_choice": "video_multiple_choice",
    "video_eval_multiple_choice_w_subtitle": "video_multiple_choice_w_subtitle",
    "video_eval_short_answer": "video_short_answer",
    "eval_short_answer": "vqa2",
    "eval_multiple_choice": "a_okvqa_mc",
}
_DOCUMENTS = ("chart", "chemical", "circuit", "diagram", "document", "graphic", "math", "music", "nutrition", "table")
STYLES = frozenset(
    {
        *PREFIX_FREE_STYLES,
        *SHORT_ANSWER_STYLES,
        *EVALUATION_STYLES,
        *("demo", "plain", "transcript", "coco_captioning", "count_then_point", "only_count", "android_control"),
        *("video_object_caption", "video_motion_caption", "video_merged_caption"),
        *("activitynet_short_caption", "epic_kitchens_short_caption", "video_clip_short_caption_start_end"),
        *("charades_sta", "ego4d_nlq_temporal_grounding", "ego4d_mq_temporal_grounding"),
        *("video_point_ground_start_end", "video_single_point_track_per_frame"),
        *(f"cosyn_{kind}{ending}" for kind in _DOCUMENTS for ending in ("", "_exp")),
    }
)


def training_style(style: str) -> str:
    """The style that an evaluation style tests; any other style itself."""
    return EVALUATION_STYLES.get(style, style)


def shows_options(style: str) -> bool:
    """Whether a question of this style lists its options in the prompt."""
    return training_style(style) in MULTIPLE_CHOICE_STYLES


def scores_options(style: str) -> bool:
    """Whether options of a question of this style tell which answers there are, without being in the prompt."""
    return training_style(style) in SHORT_ANSWER_STYLES


def style_problem(style: str) -> str | None:
    """What is wrong with a style, with the nearest known one; None where nothing is."""
    if style in STYLES:
        return None
    near = difflib.get_close_matches(style, sorted(STYLES), n=1)
    hint = f"did you mean {near[0]!r}" if near else "take 'user_qa' for a question as it stands, or one of docs/data.md"
    return f"the style {style[:60]!r} is unknown; {hint}"
